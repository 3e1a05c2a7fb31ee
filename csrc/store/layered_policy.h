#pragma once
// Policies that know that layers take turns: an expert can only be wanted when its layer comes round again.

#include <memory>

#include "store/policy.h"

namespace flash_moe::store {

// "lfu-decay": evicts the expert with the fewest uses, each use counting half after `half_life` visits of its layer.
// With a `half_life` below 1 that is the one unused for the most visits of its layer. Of equals, the one whose layer comes
// last goes. O(log n) a use, O(layers + log n) a victim.
struct DecayOptions {
  const char* name = "lfu-decay";
  double half_life = 16;
};
std::unique_ptr<Policy> make_decay_policy(const DecayOptions& options);

}  // namespace flash_moe::store
