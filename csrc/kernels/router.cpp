#include "kernels/router.h"

#include <cmath>

namespace flash_moe::kernels {
namespace {

// Keeps ids and weights [count] ranked; a new entry goes behind those of equal weight, which have lower ids.
void insert_ranked(int32_t* ids, float* weights, int64_t count, int32_t id, float weight) {
  int64_t at = count;
  while (at > 0 && weight > weights[at - 1]) {
    ids[at] = ids[at - 1];
    weights[at] = weights[at - 1];
    --at;
  }
  ids[at] = id;
  weights[at] = weight;
}

}  // namespace

void softmax_topk(const float* logits, int64_t n, int64_t k, bool normalise, int32_t* ids, float* weights) {
  float max = logits[0];
  for (int64_t i = 1; i < n; ++i) max = logits[i] > max ? logits[i] : max;
  // Ranked by the exponentials: dividing by their sum keeps the order.
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float e = std::exp(logits[i] - max);
    sum += static_cast<double>(e);
    const auto id = static_cast<int32_t>(i);
    if (i < k) {
      insert_ranked(ids, weights, i, id, e);
    } else if (e > weights[k - 1]) {
      insert_ranked(ids, weights, k - 1, id, e);
    }
  }
  const auto total = static_cast<float>(sum);
  double chosen = 0;
  for (int64_t j = 0; j < k; ++j) {
    weights[j] /= total;
    chosen += static_cast<double>(weights[j]);
  }
  if (!normalise) return;
  for (int64_t j = 0; j < k; ++j) weights[j] /= static_cast<float>(chosen);
}

}  // namespace flash_moe::kernels
