#pragma once
// Routing traces made up for measurements where no real model can be run: experts drawn by popularity and by what was
// used lately.

#include <cstddef>
#include <cstdint>

#include "store/simulator.h"

namespace flash_moe::store {

// Each token draws its experts, without repetition, by softmax of logits that are a sum of independent normal parts: one that
// never changes (skew), and two that drift and are forgotten after some tokens (topic and context).
struct SyntheticRouting {
  int32_t layers = 1;
  int32_t experts = 512;
  int32_t experts_per_token = 10;
  int32_t tokens = 1000;
  double skew = 0;            // standard deviation of the constant part
  double topic = 0;           // of the slow part
  double topic_tokens = 256;  // after which its correlation has fallen to 1/e
  double context = 0;         // of the fast part
  double context_tokens = 4;
  uint64_t seed = 1;
};

// tokens * layers rows, layers in order within a token, ids in rank order. The same on every machine to the rounding of
// exp and log. Throws ConfigError for shapes that cannot be.
Trace synthetic_trace(const SyntheticRouting& routing);

}  // namespace flash_moe::store
