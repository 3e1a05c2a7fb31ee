#pragma once
// Hit rates of eviction policies over a recorded trace, with Belady's optimum beside them: what `flash-moe cache-sim`
// prints. The same Policy objects as in the store, without reads or threads.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "store/policy.h"

namespace flash_moe::store {

// Rows of layer, then ids, as ExpertStore::take_trace gives them.
using Trace = std::vector<std::vector<int32_t>>;

struct SimulationResult {
  std::string policy;
  size_t capacity = 0;  // experts
  uint64_t accesses = 0;
  uint64_t hits = 0;
  double hit_rate() const {
    return accesses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(accesses);
  }
};

// Serves the rows as decode acquires: the experts of a row are there together, so a miss never evicts one of its own
// row. Rows before `first_counted` fill the cache and are not counted. `logits` of the router [rows, experts], or empty.
// ConfigError if `capacity` is below a row's experts; FormatError for a row without a layer or with a negative number, and
// for logits that are not as many in each row.
SimulationResult simulate(const Trace& trace, std::string_view policy, size_t capacity,
                          size_t first_counted = 0, std::span<const float> logits = {});

// The most hits that any policy could have had: evicts what is wanted again last (Belady).
SimulationResult simulate_belady(const Trace& trace, size_t capacity, size_t first_counted = 0);

// Every policy ("belady" is one) at every capacity, in that order.
std::vector<SimulationResult> simulate_all(const Trace& trace, std::span<const std::string> policies,
                                           std::span<const size_t> capacities,
                                           size_t first_counted = 0);

}  // namespace flash_moe::store
