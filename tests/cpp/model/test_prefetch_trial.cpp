#include "model/prefetch_trial.h"

#include <cstdint>

#include "test.h"

using flash_moe::model::Prefetch;
using flash_moe::model::PrefetchTrial;

namespace {

constexpr int64_t kTrial = 4 * PrefetchTrial::kBlockSteps;

// Steps that take `with_ns` with hints and `without_ns` without; returns how many had hints.
int64_t run(PrefetchTrial& trial, int64_t steps, uint64_t with_ns, uint64_t without_ns, bool read = true) {
  int64_t hinted = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const bool on = trial.on();
    hinted += on ? 1 : 0;
    trial.step_done(on ? with_ns : without_ns, read);
  }
  return hinted;
}

}  // namespace

TEST(a_fixed_choice_is_never_tried) {
  PrefetchTrial on(Prefetch::on), off(Prefetch::off);
  CHECK(run(on, 500, 9, 1) == 500);
  CHECK(run(off, 500, 1, 9) == 0);
}

TEST(half_of_a_trial_has_hints_and_the_faster_half_wins) {
  PrefetchTrial faster(Prefetch::automatic), slower(Prefetch::automatic);
  CHECK(run(faster, kTrial, 80, 100) == kTrial / 2);
  CHECK(run(faster, PrefetchTrial::kSettledStepsMin, 80, 100) == PrefetchTrial::kSettledStepsMin);
  CHECK(run(slower, kTrial, 110, 100) == kTrial / 2);
  CHECK(run(slower, PrefetchTrial::kSettledStepsMin, 110, 100) == 0);
}

TEST(a_trend_does_not_decide) {
  // Each step is 1 % faster than the one before it, as while a cache fills; hints cost 2 %.
  PrefetchTrial trial(Prefetch::automatic);
  double ns = 1e6;
  for (int64_t i = 0; i < kTrial; ++i, ns *= 0.99) trial.step_done(static_cast<uint64_t>(trial.on() ? ns * 1.02 : ns), true);
  CHECK(!trial.on());
}

TEST(a_few_stalls_do_not_decide) {
  PrefetchTrial trial(Prefetch::automatic);
  for (int64_t i = 0; i < kTrial; ++i) trial.step_done(trial.on() ? (i % 4 == 0 ? 5000 : 80) : 100, true);
  CHECK(trial.on());
}

TEST(a_change_is_found_by_a_later_trial) {
  PrefetchTrial trial(Prefetch::automatic);
  run(trial, kTrial, 80, 100);
  CHECK(trial.on());
  run(trial, PrefetchTrial::kSettledStepsMax + kTrial, 120, 100);
  CHECK(!trial.on());
}

TEST(trials_become_rarer_while_they_agree) {
  PrefetchTrial trial(Prefetch::automatic);
  run(trial, 20000, 80, 100);
  const int64_t without = 20000 - run(trial, 20000, 80, 100);
  CHECK(without > 0);
  CHECK(without < 20000 / 50);
}

TEST(without_reads_hints_end_and_the_next_read_begins_a_trial) {
  PrefetchTrial trial(Prefetch::automatic);
  run(trial, kTrial, 80, 100);
  CHECK(trial.on());
  run(trial, PrefetchTrial::kIdleSteps, 80, 100, false);
  CHECK(run(trial, 5000, 80, 100, false) == 0);
  trial.step_done(100, true);
  CHECK(trial.on());
  CHECK(run(trial, kTrial, 80, 100) == kTrial / 2);
}

TEST(a_trial_without_reads_ends_without_hints) {
  PrefetchTrial trial(Prefetch::automatic);
  run(trial, kTrial, 80, 100, false);
  CHECK(!trial.on());
}
