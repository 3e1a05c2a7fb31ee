#pragma once
// Whether to read ahead, found by trying. Pure: no I/O, threads or clock.
//
// A wrong guess costs time of the drive, a right one hides a read behind arithmetic; which weighs more depends on drive,
// cache, model and text. So a few steps run with hints and as many without, in the order with, without, without, with (a
// trend, as of a cache that fills, cancels), and the steps after them as the faster half, until the next trial. Trials become
// rarer while they agree. Steps of which none reads need no trial: nothing is hinted. Steps of more sequences take longer, so
// times are those of an expert that the step wanted.

#include <array>
#include <cstdint>
#include <vector>

namespace flash_moe::model {

enum class Prefetch : uint8_t { off, on, automatic };

// Thread-compatible.
class PrefetchTrial {
 public:
  static constexpr int64_t kBlockSteps = 6;  // of a trial's four blocks
  static constexpr int64_t kSettledStepsMin = 128;
  static constexpr int64_t kSettledStepsMax = 1024;
  static constexpr int64_t kIdleSteps = 8;  // without a read, after which hints end

  explicit PrefetchTrial(Prefetch mode) : mode_(mode) {}

  // Whether the next decode step is to give hints.
  bool on() const;
  // A decode step is over: its time divided by the experts that it wanted, and whether it started a read.
  void step_done(uint64_t ns_an_expert, bool read);

 private:
  void begin_trial();
  void settle();

  const Prefetch mode_;
  bool in_trial_ = true;
  bool winner_ = false;
  bool any_read_ = false;      // in this trial
  int64_t step_ = 0;           // of this trial or settled period
  int64_t idle_steps_ = 0;     // in a row
  int64_t settled_steps_ = kSettledStepsMin;
  std::array<std::vector<uint64_t>, 2> times_;  // of this trial: without, with
};

}  // namespace flash_moe::model
