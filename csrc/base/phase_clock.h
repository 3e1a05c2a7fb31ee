#pragma once
// Where a step's wall time goes, and a trace of it. Driven by one thread; phases do not nest.

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace flash_moe {

enum class Phase : uint8_t { embed, attention, delta_net, router, shared_expert, experts, read_wait, combine, head, count };

constexpr const char* phase_name(Phase phase) {
  constexpr const char* names[] = {"embed",   "attention",     "delta net", "router", "shared expert",
                                   "experts", "wait for reads", "combine",   "head"};
  return names[static_cast<size_t>(phase)];
}

class PhaseClock {
 public:
  struct Total {
    uint64_t ns = 0;
    uint64_t calls = 0;
    uint64_t bytes = 0;
  };

  static uint64_t now_ns() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
  }

  // Counts the time until destruction to `phase`; `bytes` of weights or caches are touched in it.
  class Scope {
   public:
    Scope(PhaseClock& clock, Phase phase, int64_t layer = -1)
        : clock_(clock), phase_(phase), layer_(layer), begin_ns_(now_ns()) {}
    ~Scope() { clock_.add(phase_, layer_, begin_ns_, now_ns(), bytes_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    void add_bytes(uint64_t bytes) { bytes_ += bytes; }

   private:
    PhaseClock& clock_;
    Phase phase_;
    int64_t layer_;
    uint64_t begin_ns_;
    uint64_t bytes_ = 0;
  };

  const Total& total(Phase phase) const { return totals_[static_cast<size_t>(phase)]; }
  void reset() { totals_ = {}; }
  void trace(bool on) {
    tracing_ = on;
    if (on) events_.clear();
  }
  // Chrome trace events of everything since trace(true), at most kEventsMax of them.
  std::string take_trace_json();

 private:
  struct Event {
    uint64_t begin_ns;
    uint64_t end_ns;
    Phase phase;
    int64_t layer;
    uint64_t bytes;
  };
  static constexpr size_t kEventsMax = 1 << 20;

  void add(Phase phase, int64_t layer, uint64_t begin_ns, uint64_t end_ns, uint64_t bytes) {
    Total& total = totals_[static_cast<size_t>(phase)];
    total.ns += end_ns - begin_ns;
    ++total.calls;
    total.bytes += bytes;
    if (tracing_ && events_.size() < kEventsMax) events_.push_back({begin_ns, end_ns, phase, layer, bytes});
  }

  std::array<Total, static_cast<size_t>(Phase::count)> totals_{};
  bool tracing_ = false;
  std::vector<Event> events_;
};

}  // namespace flash_moe
