#include "store/simulator.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "flash_moe/error.h"
#include "store/synthetic_trace.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::FormatError;
using flash_moe::store::simulate;
using flash_moe::store::simulate_all;
using flash_moe::store::simulate_belady;
using flash_moe::store::Trace;

namespace {

// One layer, one expert a row.
Trace one_by_one(std::initializer_list<int32_t> ids) {
  Trace trace;
  for (const int32_t id : ids) trace.push_back({0, id});
  return trace;
}

// The best of all choices, by trying them all.
uint64_t most_hits(const Trace& trace, size_t row, std::vector<int32_t> held, size_t capacity) {
  if (row == trace.size()) return 0;
  uint64_t hits = 0;
  std::vector<int32_t> wanted(trace[row].begin() + 1, trace[row].end());
  std::vector<int32_t> missing;
  for (const int32_t id : wanted) {
    if (std::find(held.begin(), held.end(), id) != held.end()) {
      ++hits;
    } else {
      missing.push_back(id);
    }
  }
  const std::vector<int32_t> before = held;
  held.insert(held.end(), missing.begin(), missing.end());
  std::vector<int32_t> spare;
  for (const int32_t id : before) {
    if (std::find(wanted.begin(), wanted.end(), id) == wanted.end()) spare.push_back(id);
  }
  const size_t excess = held.size() > capacity ? held.size() - capacity : 0;
  uint64_t best = 0;
  for (uint32_t choice = 0; choice < (1u << spare.size()); ++choice) {
    if (static_cast<size_t>(__builtin_popcount(choice)) != excess) continue;
    std::vector<int32_t> rest = held;
    for (size_t i = 0; i < spare.size(); ++i) {
      if ((choice >> i & 1u) != 0) std::erase(rest, spare[i]);
    }
    best = std::max(best, most_hits(trace, row + 1, rest, capacity));
  }
  return hits + best;
}

}  // namespace

TEST(lru_hits_are_those_counted_by_hand) {
  const Trace trace = one_by_one({1, 2, 3, 1, 4, 1, 2, 3});
  // 2 slots: 1 2 | 3 | 1 misses | 4 | 1 hits | 2 | 3
  CHECK(simulate(trace, "lru", 2).hits == 1);
  // 3 slots: 1 hits, 4 replaces 2, 1 hits, 2 replaces 3, 3 replaces 4
  CHECK(simulate(trace, "lru", 3).hits == 2);
  CHECK(simulate(trace, "lru", 4).hits == 4);
  CHECK(simulate(trace, "lru", 4).accesses == 8);
}

TEST(belady_hits_are_those_counted_by_hand) {
  const Trace trace = one_by_one({1, 2, 3, 1, 4, 1, 2, 3});
  // 2 slots: 3 replaces 2 and 4 replaces 3, so 1 hits twice; then 2, 3 miss.
  CHECK(simulate_belady(trace, 2).hits == 2);
  // 3 slots: 4 replaces 3 (wanted last): 1, 1, 2 hit.
  CHECK(simulate_belady(trace, 3).hits == 3);
  CHECK(simulate_belady(trace, 4).hits == 4);
}

TEST(a_row_never_evicts_its_own_experts) {
  const Trace trace = {{0, 1, 2}, {0, 2, 3}, {1, 1, 2}, {0, 1, 2}};
  CHECK(simulate(trace, "lru", 2).hits == 1);
  // 3 slots: 2 hits; then layer 1 takes two slots, and one of layer 0's stays.
  CHECK(simulate(trace, "lru", 3).hits == 1);
  CHECK(simulate_belady(trace, 3).hits == 2);
}

TEST(belady_is_the_best_of_all_choices) {
  std::mt19937 random(3);
  for (int round = 0; round < 40; ++round) {
    Trace trace;
    for (int row = 0; row < 9; ++row) {
      const auto first = static_cast<int32_t>(random() % 6);
      trace.push_back({0, first});
      if (random() % 2 == 0) trace.back().push_back((first + 1 + static_cast<int32_t>(random() % 5)) % 6);
    }
    for (const size_t capacity : {2u, 3u, 4u}) {
      const uint64_t best = most_hits(trace, 0, {}, capacity);
      CHECK(simulate_belady(trace, capacity).hits == best);
      for (const auto& policy : flash_moe::store::policy_names()) {
        CHECK(simulate(trace, policy, capacity).hits <= best);
      }
    }
  }
}

TEST(score_knows_more_than_uses_where_logits_drift) {
  constexpr size_t experts = 64;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> state(experts);
  std::vector<float> logits;
  Trace trace;
  for (int row = 0; row < 500; ++row) {
    for (float& x : state) x = 0.9f * x + normal(random);
    logits.insert(logits.end(), state.begin(), state.end());
    std::vector<int32_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return state[a] > state[b]; });
    trace.push_back({0, order[0], order[1], order[2], order[3]});
  }
  const uint64_t lru = simulate(trace, "lru", 12).hits;
  const uint64_t score = simulate(trace, "score", 12, 0, logits).hits;
  const uint64_t best = simulate_belady(trace, 12).hits;
  CHECK(score < best && (score - lru) * 5 > best - lru);
  logits.pop_back();
  CHECK_THROWS(simulate(trace, "score", 12, 0, logits), FormatError, "do not divide into 500 rows");
}

TEST(rows_before_the_first_counted_only_warm) {
  const Trace trace = one_by_one({1, 2, 1, 2});
  CHECK(simulate(trace, "lru", 2, 2).hits == 2);
  CHECK(simulate(trace, "lru", 2, 2).accesses == 2);
  CHECK(simulate_belady(trace, 2, 2).hit_rate() == 1.0);
}

TEST(all_policies_at_all_capacities_in_order) {
  const Trace trace = one_by_one({1, 2, 3, 1});
  const std::vector<std::string> policies = {"lru", "belady"};
  const std::vector<size_t> capacities = {1, 3};
  const auto results = simulate_all(trace, policies, capacities);
  CHECK(results.size() == 4);
  CHECK(results[1].policy == "lru" && results[1].capacity == 3 && results[1].hits == 1);
  CHECK(results[2].policy == "belady" && results[2].capacity == 1 && results[2].hits == 0);
}

TEST(damaged_traces_and_small_capacities_are_told_apart) {
  CHECK_THROWS(simulate({{0, 1, 2}}, "lru", 1), ConfigError, "has 2 experts, the capacity is 1");
  CHECK_THROWS(simulate({{0, 1}, {}}, "lru", 1), FormatError, "trace row 1");
  CHECK_THROWS(simulate_belady({{0, -1}}, 1), FormatError, "negative");
  CHECK(simulate({}, "lru", 1).hit_rate() == 0);
}
