#pragma once
// Rotary position embedding of the first rotary_dim elements of a head, pairs (x[i], x[i + rotary_dim / 2]).
// As transformers does it in float32: the frequency, and its product with the position, are rounded to f32.
// cos and sin of that angle are computed in double, so they are right to f32 rounding at every position.

#include <cstdint>

namespace flash_moe::kernels {

// frequencies [rotary_dim / 2]: theta^(-2i / rotary_dim). Once per model.
void rope_frequencies(float* frequencies, int64_t rotary_dim, double theta);

// cos, sin [rotary_dim / 2] of one position. Once per position, for all layers and heads.
void rope_angles(float* cos, float* sin, const float* frequencies, int64_t rotary_dim, int64_t position);

// head [>= rotary_dim], in place.
void rope_rotate(float* head, const float* cos, const float* sin, int64_t rotary_dim);

}  // namespace flash_moe::kernels
