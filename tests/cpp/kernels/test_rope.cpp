#include "kernels/rope.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "test.h"

using namespace flash_moe::kernels;

namespace {

// torch 2.13, float32, CPU: inv_freq = 1 / theta ** (arange(0, 64, 2) / 64), cos and sin of position * inv_freq.
struct Golden {
  int64_t position;
  int index;
  float cos, sin;
};

}  // namespace

#include "kernels/rope_golden.inc"

TEST(rope_angles_match_torch_at_every_position) {
  float frequencies[32], cos[32], sin[32];
  rope_frequencies(frequencies, 64, 1e7);
  for (int i = 0; i < 32; ++i) CHECK(frequencies[i] == kTorchFrequencies[i]);
  for (const Golden& g : kTorchAngles) {
    rope_angles(cos, sin, frequencies, 64, g.position);
    CHECK(std::abs(cos[g.index] - g.cos) < 1.2e-7f);
    CHECK(std::abs(sin[g.index] - g.sin) < 1.2e-7f);
  }
}

TEST(rope_rotates_half_split_pairs_and_leaves_the_rest) {
  const float cos[] = {0.6f, 0.0f}, sin[] = {0.8f, 1.0f};
  float head[] = {1, 2, 3, 4, 5, 6};
  rope_rotate(head, cos, sin, 4);
  CHECK(head[0] == 1 * 0.6f - 3 * 0.8f);
  CHECK(head[1] == -4);
  CHECK(head[2] == 3 * 0.6f + 1 * 0.8f);
  CHECK(head[3] == 2);
  CHECK(head[4] == 5 && head[5] == 6);
}

TEST(rope_at_position_zero_changes_nothing) {
  float frequencies[4], cos[4], sin[4];
  rope_frequencies(frequencies, 8, 1e4);
  rope_angles(cos, sin, frequencies, 8, 0);
  float head[] = {1, -2, 3, -4, 5, -6, 7, -8};
  rope_rotate(head, cos, sin, 8);
  for (int i = 0; i < 8; ++i) CHECK(head[i] == static_cast<float>(i % 2 ? -(i + 1) : i + 1));
}
