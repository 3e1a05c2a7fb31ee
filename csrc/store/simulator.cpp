#include "store/simulator.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <utility>

#include "flash_moe/error.h"
#include "store/key_lists.h"

namespace flash_moe::store {
namespace {

constexpr uint64_t never = std::numeric_limits<uint64_t>::max();

void check_trace(const Trace& trace, size_t capacity) {
  for (size_t row = 0; row < trace.size(); ++row) {
    const std::vector<int32_t>& numbers = trace[row];
    if (numbers.empty() || std::any_of(numbers.begin(), numbers.end(), [](int32_t x) { return x < 0; })) {
      throw FormatError("trace row " + std::to_string(row) +
                        ": wanted a layer and expert numbers from 0, got " +
                        (numbers.empty() ? "nothing" : "a negative number"));
    }
    if (numbers.size() - 1 > capacity) {
      throw ConfigError("trace row " + std::to_string(row) + " has " +
                        std::to_string(numbers.size() - 1) + " experts, the capacity is " +
                        std::to_string(capacity) + "; simulate at least that many");
    }
  }
}

// When each key was last in a row, to spare the row's own experts. Rows count from 1.
class RowMarks {
 public:
  void mark(ExpertKey key, size_t row) { table_.set(key, static_cast<uint32_t>(row)); }
  bool marked(ExpertKey key, size_t row) const {
    return table_.find(key) == static_cast<uint32_t>(row);
  }

 private:
  KeyTable table_;
};

// For each access, in order, the number of the next one to the same key.
std::vector<uint64_t> next_accesses(const Trace& trace) {
  uint64_t count = 0;
  for (const auto& row : trace) count += row.size() - 1;
  std::vector<uint64_t> next(count, never);
  KeyTable seen;
  for (size_t row = trace.size(); row > 0; --row) {
    const std::vector<int32_t>& numbers = trace[row - 1];
    for (size_t i = numbers.size() - 1; i > 0; --i) {
      const ExpertKey key = expert_key(numbers[0], numbers[i]);
      const uint32_t later = seen.find(key);
      --count;
      if (later != KeyTable::none) next[count] = later;
      seen.set(key, static_cast<uint32_t>(count));
    }
  }
  return next;
}

}  // namespace

SimulationResult simulate(const Trace& trace, std::string_view name, size_t capacity,
                          size_t first_counted, std::span<const float> logits) {
  check_trace(trace, capacity);
  const size_t experts = trace.empty() ? 0 : logits.size() / trace.size();
  if (logits.size() != experts * trace.size()) {
    throw FormatError("trace: " + std::to_string(logits.size()) + " router logits do not divide into " +
                      std::to_string(trace.size()) + " rows");
  }
  const auto policy = make_policy(name, capacity);
  SimulationResult result{std::string(name), capacity, 0, 0};
  KeyTable present;
  RowMarks marks;
  size_t held = 0;
  std::vector<ExpertKey> missing;
  for (size_t row = 0; row < trace.size(); ++row) {
    const std::vector<int32_t>& numbers = trace[row];
    policy->on_acquire(static_cast<uint32_t>(numbers[0]), logits.subspan(row * experts, experts), experts == 0 ? 0 : 1,
                       false);
    missing.clear();
    for (size_t i = 1; i < numbers.size(); ++i) {
      const ExpertKey key = expert_key(numbers[0], numbers[i]);
      marks.mark(key, row);
      if (present.find(key) == KeyTable::none) {
        missing.push_back(key);
      } else {
        policy->on_hit(key, false);
      }
    }
    if (row >= first_counted) {
      result.accesses += numbers.size() - 1;
      result.hits += numbers.size() - 1 - missing.size();
    }
    for (const ExpertKey key : missing) {
      ExpertKey victim = 0;
      if (held == capacity) {
        const auto other = [&](ExpertKey candidate) { return !marks.marked(candidate, row); };
        FM_CHECK(policy->victim(other, victim));
        policy->on_evict(victim);
        present.set(victim, KeyTable::none);
        --held;
      }
      policy->on_insert(key, false);
      present.set(key, 1);
      ++held;
    }
  }
  return result;
}

SimulationResult simulate_belady(const Trace& trace, size_t capacity, size_t first_counted) {
  check_trace(trace, capacity);
  const std::vector<uint64_t> next = next_accesses(trace);
  SimulationResult result{"belady", capacity, 0, 0};
  // Farthest next access first. Entries of keys that were accessed again or evicted since are stale, and skipped.
  std::priority_queue<std::pair<uint64_t, ExpertKey>> farthest;
  KeyTable held_at;  // the access that brought or renewed each key held
  RowMarks marks;
  size_t held = 0;
  uint64_t access = 0;
  std::vector<std::pair<uint64_t, ExpertKey>> spared;
  for (size_t row = 0; row < trace.size(); ++row) {
    const std::vector<int32_t>& numbers = trace[row];
    for (size_t i = 1; i < numbers.size(); ++i) marks.mark(expert_key(numbers[0], numbers[i]), row);
    spared.clear();
    for (size_t i = 1; i < numbers.size(); ++i, ++access) {
      const ExpertKey key = expert_key(numbers[0], numbers[i]);
      const bool hit = held_at.find(key) != KeyTable::none;
      if (row >= first_counted) {
        ++result.accesses;
        result.hits += hit ? 1 : 0;
      }
      while (!hit && held == capacity) {
        const auto [when, victim] = farthest.top();
        farthest.pop();
        const uint32_t since = held_at.find(victim);
        if (since == KeyTable::none || next[since] != when) continue;
        if (marks.marked(victim, row)) {
          spared.emplace_back(when, victim);
          continue;
        }
        held_at.set(victim, KeyTable::none);
        --held;
      }
      if (!hit) ++held;
      held_at.set(key, static_cast<uint32_t>(access));
      farthest.emplace(next[access], key);
    }
    for (const auto& entry : spared) farthest.push(entry);
  }
  return result;
}

std::vector<SimulationResult> simulate_all(const Trace& trace, std::span<const std::string> policies,
                                           std::span<const size_t> capacities,
                                           size_t first_counted) {
  std::vector<SimulationResult> results;
  for (const std::string& policy : policies) {
    for (const size_t capacity : capacities) {
      results.push_back(policy == "belady" ? simulate_belady(trace, capacity, first_counted)
                                           : simulate(trace, policy, capacity, first_counted));
    }
  }
  return results;
}

}  // namespace flash_moe::store
