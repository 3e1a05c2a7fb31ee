#include "store/policy.h"

#include <cmath>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::store::expert_key;
using flash_moe::store::ExpertKey;
using flash_moe::store::make_policy;
using flash_moe::store::Policy;
using flash_moe::store::policy_names;

namespace {

bool anything(ExpertKey) { return true; }

// Evicts everything; the keys in the order in which they went.
std::vector<ExpertKey> drain(Policy& policy) {
  std::vector<ExpertKey> order;
  ExpertKey key = 0;
  while (policy.victim(anything, key)) {
    policy.on_evict(key);
    order.push_back(key);
  }
  return order;
}

using Keys = std::vector<ExpertKey>;

}  // namespace

TEST(lru_evicts_by_last_use) {
  const auto policy = make_policy("lru", 4);
  for (ExpertKey key = 1; key <= 4; ++key) policy->on_insert(key, false);
  policy->on_hit(1, false);
  policy->on_hit(3, false);
  CHECK((drain(*policy) == Keys{2, 4, 1, 3}));
}

TEST(clock_gives_a_second_chance) {
  const auto policy = make_policy("clock", 4);
  for (ExpertKey key = 1; key <= 4; ++key) policy->on_insert(key, false);
  policy->on_hit(1, false);
  policy->on_hit(3, false);
  CHECK((drain(*policy) == Keys{2, 4, 1, 3}));
}

TEST(clock_finds_a_victim_when_all_are_marked) {
  const auto policy = make_policy("clock", 3);
  for (ExpertKey key = 1; key <= 3; ++key) {
    policy->on_insert(key, false);
    policy->on_hit(key, false);
  }
  ExpertKey key = 0;
  CHECK(policy->victim([](ExpertKey candidate) { return candidate == 2; }, key) && key == 2);
}

TEST(segmented_lru_keeps_what_was_used_twice) {
  const auto policy = make_policy("slru", 5);
  for (ExpertKey key = 1; key <= 5; ++key) policy->on_insert(key, false);
  policy->on_hit(1, false);
  policy->on_hit(2, false);
  CHECK((drain(*policy) == Keys{3, 4, 5, 1, 2}));
}

TEST(segmented_lru_demotes_above_four_fifths) {
  const auto policy = make_policy("slru", 5);
  for (ExpertKey key = 1; key <= 5; ++key) policy->on_insert(key, false);
  for (ExpertKey key = 1; key <= 5; ++key) policy->on_hit(key, false);
  policy->on_insert(6, false);
  // 1 fell back to probation before 6 came.
  CHECK((drain(*policy) == Keys{1, 6, 2, 3, 4, 5}));
  policy->on_insert(1, false);
  policy->on_insert(2, false);
  policy->on_hit(2, false);
  policy->on_capacity(1);
  CHECK((drain(*policy) == Keys{1, 2}));
}

TEST(score_evicts_what_the_router_thought_least_of_lately) {
  const auto policy = make_policy("score", 8);
  const auto row = [&](uint32_t layer, std::initializer_list<float> logits) {
    policy->on_acquire(layer, std::vector<float>(logits), 1, false);
  };
  row(0, {3, 1, 2, 0});
  for (const int64_t expert : {0, 1, 3}) policy->on_insert(expert_key(0, expert), false);
  // Another layer's logits are a thousand times as large and shifted, and mean the same.
  row(1, {9000, 7500, 8000, 6000});
  for (const int64_t expert : {0, 1, 2}) policy->on_insert(expert_key(1, expert), false);
  const auto order = [](std::initializer_list<std::pair<int, int>> pairs) {
    Keys keys;
    for (const auto& [layer, expert] : pairs) keys.push_back(expert_key(layer, expert));
    return keys;
  };
  ExpertKey key = 0;
  CHECK(policy->victim(anything, key) && key == expert_key(0, 3));
  CHECK(policy->victim([](ExpertKey k) { return k != expert_key(0, 3); }, key) && key == expert_key(0, 1));
  // The newest row has half of the weight: 1 rises above 0, which a use alone does not change.
  row(0, {0, 3, 1, 2});
  policy->on_hit(expert_key(0, 0), false);
  // Rows without numbers, or in which all are alike, change nothing.
  row(0, {NAN, 3, 1, 2});
  row(0, {5, 5, 5, 5});
  CHECK((drain(*policy) == order({{0, 0}, {0, 3}, {1, 1}, {1, 2}, {0, 1}, {1, 0}})));
}

TEST(score_keeps_what_any_of_several_sequences_wants) {
  // Expert 3 is all that one of them wants, expert 2 and then 0 what the other wants, whichever comes first.
  for (const std::vector<float>& rows : {std::vector<float>{0, 0, 0, 9, 4, 0, 9, 0}, std::vector<float>{4, 0, 9, 0, 0, 0, 0, 9}}) {
    const auto policy = make_policy("score", 8);
    policy->on_acquire(0, rows, 2, false);
    for (ExpertKey key = 0; key < 4; ++key) policy->on_insert(key, false);
    // A row in which all are alike is nobody's wish.
    policy->on_acquire(0, std::vector<float>{7, 7, 7, 7, 9, 9, 9, 9}, 2, false);
    CHECK((drain(*policy) == Keys{1, 0, 2, 3}));
  }
}

TEST(score_takes_uses_where_no_logits_are_known) {
  const auto policy = make_policy("score", 8);
  for (ExpertKey key = 1; key <= 3; ++key) {
    policy->on_acquire(0, {}, 0, false);
    policy->on_insert(key, false);
  }
  policy->on_acquire(0, {}, 0, false);
  policy->on_hit(1, false);
  CHECK((drain(*policy) == Keys{2, 3, 1}));
}

TEST(scans_enter_cold_and_warm_nothing) {
  for (const std::string& name : policy_names()) {
    const auto policy = make_policy(name, 8);
    policy->on_acquire(0, {}, 0, false);
    for (ExpertKey key = 1; key <= 3; ++key) policy->on_insert(key, false);
    for (ExpertKey key = 1; key <= 3; ++key) policy->on_hit(key, false);
    policy->on_acquire(0, {}, 0, true);
    policy->on_insert(4, true);
    policy->on_hit(4, true);
    policy->on_insert(5, true);
    ExpertKey first = 0;
    ExpertKey second = 0;
    CHECK(policy->victim(anything, first));
    policy->on_evict(first);
    CHECK(policy->victim(anything, second));
    CHECK(first + second == 9);
    // One that decode hits is like any other from then on.
    policy->on_acquire(0, {}, 0, false);
    policy->on_hit(second, false);
    policy->on_evict(1);
    policy->on_insert(1, true);
    CHECK(policy->victim(anything, first));
    CHECK(first == 1);
  }
}

TEST(every_policy_evicts_only_what_it_may_and_holds) {
  for (const std::string& name : policy_names()) {
    const auto policy = make_policy(name, 40);
    std::mt19937 random(5);
    std::set<ExpertKey> held;
    for (int step = 0; step < 3000; ++step) {
      const uint32_t layer = step / 4 % 3;
      const ExpertKey key = expert_key(layer, static_cast<int64_t>(random() % 40));
      const bool scan = random() % 7 == 0;
      if (step % 4 == 0) policy->on_acquire(layer, {}, 0, scan);
      if (held.count(key)) {
        policy->on_hit(key, scan);
        continue;
      }
      if (held.size() == 40) {
        const ExpertKey pinned = *held.begin();
        const ExpertKey barred = random() % 3;
        const auto may_evict = [&](ExpertKey candidate) {
          CHECK(held.count(candidate) == 1);
          return candidate != pinned && candidate % 3 != barred;
        };
        ExpertKey victim = 0;
        CHECK(policy->victim(may_evict, victim));
        CHECK(held.count(victim) == 1 && victim != pinned && victim % 3 != barred);
        policy->on_evict(victim);
        held.erase(victim);
      }
      policy->on_insert(key, scan);
      held.insert(key);
    }
    ExpertKey victim = 0;
    CHECK(!policy->victim([](ExpertKey) { return false; }, victim));
    CHECK(drain(*policy).size() == held.size());
    CHECK(!policy->victim(anything, victim));
  }
}

TEST(unknown_policies_name_the_known_ones) {
  CHECK_THROWS(make_policy("fifo", 1), ConfigError, "lru, clock");
  CHECK(policy_names().front() == "auto");
}
