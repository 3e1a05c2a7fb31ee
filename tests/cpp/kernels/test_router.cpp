#include "kernels/router.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "test.h"

using flash_moe::kernels::softmax_topk;

TEST(softmax_topk_ranks_as_a_stable_sort_of_the_probabilities) {
  std::mt19937 random(1);
  for (int64_t n : {1, 2, 8, 64, 128, 256, 512, 1000}) {
    for (int64_t k : {1, 2, 8, 10, 64}) {
      if (k > n) continue;
      std::vector<float> logits;
      // Coarse values, so that ties are common.
      for (int64_t i = 0; i < n; ++i) logits.push_back(0.25f * static_cast<float>(random() % 40));
      std::vector<int32_t> order(static_cast<size_t>(n));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
      });
      double total = 0, chosen = 0;
      for (float l : logits) total += std::exp(static_cast<double>(l));
      for (int64_t j = 0; j < k; ++j) {
        chosen += std::exp(static_cast<double>(logits[static_cast<size_t>(order[static_cast<size_t>(j)])]));
      }
      for (bool normalise : {false, true}) {
        std::vector<int32_t> ids(static_cast<size_t>(k));
        std::vector<float> weights(static_cast<size_t>(k));
        softmax_topk(logits.data(), n, k, normalise, ids.data(), weights.data());
        for (size_t j = 0; j < ids.size(); ++j) {
          CHECK(ids[j] == order[j]);
          const double want = std::exp(static_cast<double>(logits[static_cast<size_t>(ids[j])])) / (normalise ? chosen : total);
          CHECK(std::abs(static_cast<double>(weights[j]) - want) < 5e-7 * want);
        }
      }
    }
  }
}

TEST(softmax_topk_survives_extreme_logits) {
  std::vector<float> logits(32, -INFINITY);
  logits[9] = 1e30f;
  int32_t ids[4];
  float weights[4];
  softmax_topk(logits.data(), 32, 4, true, ids, weights);
  CHECK(ids[0] == 9 && weights[0] == 1.0f);
  CHECK(ids[1] == 0 && ids[2] == 1 && ids[3] == 2 && weights[1] == 0.0f);
}

TEST(softmax_topk_gives_valid_distinct_ids_for_nan) {
  for (size_t bad : {size_t{0}, size_t{3}, size_t{31}}) {
    std::vector<float> logits(32, 0.5f);
    logits[bad] = std::numeric_limits<float>::quiet_NaN();
    int32_t ids[8];
    float weights[8];
    softmax_topk(logits.data(), 32, 8, true, ids, weights);
    std::sort(ids, ids + 8);
    CHECK(std::unique(ids, ids + 8) == ids + 8);
    CHECK(ids[0] >= 0 && ids[7] < 32);
    CHECK(std::isnan(weights[0]));
  }
}

TEST(softmax_topk_of_512_experts_is_timed) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(512);
  for (float& l : logits) l = normal(random);
  int32_t ids[10];
  float weights[10];
  using Clock = std::chrono::steady_clock;
  auto best = Clock::duration::max();
  for (int i = 0; i < 50; ++i) {
    const auto start = Clock::now();
    softmax_topk(logits.data(), 512, 10, true, ids, weights);
    best = std::min(best, Clock::now() - start);
  }
  std::printf("512 experts, top 10: %lld ns\n",
              static_cast<long long>(std::chrono::duration_cast<std::chrono::nanoseconds>(best).count()));
  CHECK(ids[0] >= 0 && ids[0] < 512);
}
