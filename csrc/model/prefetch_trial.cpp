#include "model/prefetch_trial.h"

#include <algorithm>

namespace flash_moe::model {
namespace {

uint64_t median(std::vector<uint64_t>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

bool PrefetchTrial::on() const {
  if (mode_ != Prefetch::automatic) return mode_ == Prefetch::on;
  if (!in_trial_) return winner_;
  const int64_t block = step_ / kBlockSteps;
  return block == 0 || block == 3;
}

void PrefetchTrial::step_done(uint64_t ns_an_expert, bool read) {
  if (mode_ != Prefetch::automatic) return;
  idle_steps_ = read ? 0 : idle_steps_ + 1;
  if (!in_trial_) {
    if (idle_steps_ >= kIdleSteps) {  // nothing to hint; the next read begins a trial
      winner_ = false;
      step_ = settled_steps_;
    }
    if (++step_ >= settled_steps_ && read) begin_trial();
    return;
  }
  times_[on() ? 1 : 0].push_back(ns_an_expert);
  any_read_ = any_read_ || read;
  if (++step_ == 4 * kBlockSteps) settle();
}

void PrefetchTrial::begin_trial() {
  in_trial_ = true;
  any_read_ = false;
  step_ = 0;
  for (std::vector<uint64_t>& times : times_) times.clear();
}

void PrefetchTrial::settle() {
  const bool won = any_read_ && median(times_[1]) < median(times_[0]);
  settled_steps_ = won == winner_ ? std::min(2 * settled_steps_, kSettledStepsMax) : kSettledStepsMin;
  winner_ = won;
  in_trial_ = false;
  step_ = 0;
}

}  // namespace flash_moe::model
