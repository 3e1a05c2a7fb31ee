#pragma once
// Rounding weights to the affine format, bit for bit as mlx.core.quantize does, and stored weights back to f32.

#include <cstdint>

#include "base/matrix.h"

namespace flash_moe::format {

// The smallest finite sum of a group's parts that matters: MLX's floor for a scale.
inline constexpr float affine_scale_min = 1e-7f;

// Where one row's parts go: cols * bits / 8 bytes, and cols / group elements of scale_dtype for each of the others.
struct AffineRow {
  uint8_t* data = nullptr;
  uint8_t* scales = nullptr;
  uint8_t* biases = nullptr;
};

// Quantises one row of form.cols values (a multiple of form.group) by minimum and maximum of each group. The end of
// larger magnitude is stored exactly as the bias, and the scale is adjusted so that zero is a code. Returns false, with
// the row unspecified, when a value is NaN or infinite or does not fit the scale's type.
bool quantise_affine_row(const float* values, const Matrix& form, const AffineRow& out);

// Row `row` of a matrix of any format, as f32 [cols].
void dequantise_row(const Matrix& matrix, int64_t row, float* out);

// Nearest f16, ties to even; beyond its range infinity.
uint16_t f32_to_f16(float value);

}  // namespace flash_moe::format
