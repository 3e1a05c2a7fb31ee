#include "store/layered_policy.h"

#include <vector>

#include "test.h"

using flash_moe::store::expert_key;
using flash_moe::store::ExpertKey;
using flash_moe::store::make_decay_policy;
using flash_moe::store::Policy;

namespace {

std::vector<ExpertKey> drain(Policy& policy) {
  std::vector<ExpertKey> order;
  ExpertKey key = 0;
  while (policy.victim([](ExpertKey) { return true; }, key)) {
    policy.on_evict(key);
    order.push_back(key);
  }
  return order;
}

using Keys = std::vector<ExpertKey>;

}  // namespace

TEST(many_old_uses_outweigh_one_new_one_until_they_fade) {
  const auto policy = make_decay_policy({"lfu-decay", 2});
  policy->on_acquire(0, false);
  policy->on_insert(1, false);
  for (int use = 0; use < 3; ++use) policy->on_hit(1, false);  // weight 4 at visit 1
  policy->on_acquire(0, false);
  policy->on_insert(2, false);  // 1 weighs 2.8 by now, 2 weighs 1
  ExpertKey key = 0;
  CHECK(policy->victim([](ExpertKey) { return true; }, key) && key == 2);
  for (int visit = 0; visit < 4; ++visit) policy->on_acquire(0, false);
  policy->on_insert(3, false);  // 1 weighs 4 / 2^2.5 = 0.7, 2 weighs 0.25
  CHECK((drain(*policy) == Keys{2, 1, 3}));
}

TEST(a_short_half_life_is_least_recently_used_by_visits) {
  const auto policy = make_decay_policy({"cycle", 0.05});
  for (int64_t expert = 0; expert < 3; ++expert) {
    policy->on_acquire(0, false);
    policy->on_insert(expert_key(0, expert), false);
    for (int64_t use = 0; use < 3 - expert; ++use) policy->on_hit(expert_key(0, expert), false);
  }
  policy->on_acquire(0, false);
  policy->on_hit(expert_key(0, 0), false);
  CHECK((drain(*policy) == Keys{expert_key(0, 1), expert_key(0, 2), expert_key(0, 0)}));
}

TEST(of_equals_the_layer_that_comes_last_goes_first) {
  const auto policy = make_decay_policy({"cycle", 1});
  for (uint32_t layer = 0; layer < 4; ++layer) {
    policy->on_acquire(layer, false);
    policy->on_insert(expert_key(layer, 0), false);
  }
  // All were used in one token; the layer just passed comes round last.
  CHECK((drain(*policy) ==
         Keys{expert_key(3, 0), expert_key(2, 0), expert_key(1, 0), expert_key(0, 0)}));
}

TEST(a_layer_still_to_come_is_not_older_than_one_just_passed) {
  const auto policy = make_decay_policy({"cycle", 1});
  for (uint32_t layer = 0; layer < 2; ++layer) {
    policy->on_acquire(layer, false);
    policy->on_insert(expert_key(layer, 0), false);
  }
  policy->on_acquire(0, false);  // layer 0 of the next token wanted something else
  policy->on_insert(expert_key(0, 1), false);
  // Expert 0 of layer 0 missed its turn; that of layer 1 has it still to come.
  CHECK((drain(*policy) == Keys{expert_key(0, 0), expert_key(0, 1), expert_key(1, 0)}));
}
