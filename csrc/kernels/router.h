#pragma once
// The choice of experts from the router's logits.

#include <cstdint>

namespace flash_moe::kernels {

// Softmax over all n logits in f32, then the k largest, ranked; ties go to the lower id.
//   logits   [n]
//   ids      [k]  ranked by weight, largest first
//   weights  [k]  probabilities; divided by their sum when `normalise`
// 1 <= k <= n. Deterministic; NaN logits give NaN weights and valid, distinct ids.
void softmax_topk(const float* logits, int64_t n, int64_t k, bool normalise, int32_t* ids, float* weights);

}  // namespace flash_moe::kernels
