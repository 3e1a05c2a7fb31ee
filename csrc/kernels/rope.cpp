#include "kernels/rope.h"

#include <cmath>

namespace flash_moe::kernels {

void rope_frequencies(float* frequencies, int64_t rotary_dim, double theta) {
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    frequencies[i] = 1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
  }
}

void rope_angles(float* cos, float* sin, const float* frequencies, int64_t rotary_dim, int64_t position) {
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    const auto angle = static_cast<double>(static_cast<float>(position) * frequencies[i]);
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

void rope_rotate(float* head, const float* cos, const float* sin, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

}  // namespace flash_moe::kernels
