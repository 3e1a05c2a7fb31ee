#pragma once
// What the engine counted since the last reset. Times are wall time of the thread that drives the step.

#include <cstdint>
#include <string>
#include <vector>

namespace flash_moe {

struct PhaseStats {
  std::string name;      // "attention", "experts", "wait for reads", ..., "other"
  uint64_t ns = 0;
  uint64_t calls = 0;
  uint64_t bytes = 0;    // weights and caches touched, for GB/s
};

struct Stats {
  std::vector<PhaseStats> phases;  // disjoint; with "other" they sum to step_ns
  uint64_t step_ns = 0;            // inside steps
  uint64_t steps = 0;
  uint64_t prefill_tokens = 0;
  uint64_t decode_tokens = 0;
  uint64_t prefill_ns = 0;
  uint64_t decode_ns = 0;
  uint64_t expert_hits = 0;
  uint64_t expert_joined = 0;
  uint64_t expert_misses = 0;
  uint64_t read_bytes = 0;
  uint64_t read_ns = 0;
  uint64_t wait_ns = 0;
  uint64_t prefetched = 0;
  uint64_t prefetch_used = 0;  // by the step that they were read for
  uint64_t prefetch_late = 0;  // by a later one
  uint64_t failed_reads = 0;
  int64_t slots = 0;
  std::string cache_mode;  // "slots", "both" or "os"
  std::string io_engine;
  std::string policy;
  std::string lossy;       // empty when exact, else what was given up, e.g. "4 of 10 experts"
};

// Which experts were asked for.
struct RouteTrace {
  std::vector<std::vector<int32_t>> rows;  // layer, then ids in rank order: one row for each token and layer, as computed
  std::vector<float> logits;               // of the router [rows, experts]; empty if not known
};

}  // namespace flash_moe
