#pragma once
// What the stored bits of a matrix mean, element by element. Shared by the reference kernels; ISA files have
// their own vector forms of it. Internal to kernels/.

#include <cstring>

#include "kernels/kernels.h"

namespace flash_moe::kernels::reference {

inline constexpr int64_t kLanes = 16;          // float accumulators of one result
inline constexpr int64_t kRowBlock = 64;       // inputs that share a scale in a fast row
inline constexpr float kRowCodeMax = 32512.0f;  // 127 * 256: splits into two signed bytes

// Four times the magnitude steps of E2M1, halved: the code table of mxfp4 and nvfp4, in halves.
inline constexpr int8_t kE2m1Halves[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
inline constexpr int kE2m1Offset = 12;

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline float load_f32(const uint8_t* p) {
  float value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline float load_float(const uint8_t* base, int64_t index, Dtype dtype) {
  const uint8_t* p = base + index * static_cast<int64_t>(dtype_bytes(dtype));
  if (dtype == Dtype::f32) return load_f32(p);
  return dtype == Dtype::f16 ? f16_to_f32(load_u16(p)) : bf16_to_f32(load_u16(p));
}

// 2^(code - 127); 255 is NaN (OCP E8M0).
inline float e8m0_to_f32(uint8_t code) {
  if (code == 255) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

// `bits`-wide code `index` of a little-endian bit stream.
inline uint32_t load_code(const uint8_t* row, int64_t index, int bits) {
  const int64_t at = index * bits;
  const int shift = static_cast<int>(at & 7);
  uint32_t word = row[at >> 3];
  if (shift + bits > 8) word |= static_cast<uint32_t>(row[(at >> 3) + 1]) << 8;
  return (word >> shift) & ((1u << bits) - 1u);
}

struct ScaleAndBias {
  float scale = 0;
  float bias = 0;
};

// Whether Precision::fast multiplies the matrix in integers: its weights are codes 0..255, scaled by group.
inline bool has_integer_codes(const Matrix& m) {
  return m.format == MatrixFormat::affine || m.format == MatrixFormat::mxfp4 || m.format == MatrixFormat::nvfp4;
}

// weight = code * scale + bias, for matrices with integer codes.
inline ScaleAndBias group_scale(const Matrix& m, int64_t row, int64_t group_index) {
  const int64_t at = row * m.scales_per_row() + group_index;
  if (m.format == MatrixFormat::affine) {
    return {load_float(m.scales, at, m.scale_dtype), load_float(m.biases, at, m.scale_dtype)};
  }
  const float s = m.format == MatrixFormat::mxfp4 ? e8m0_to_f32(m.scales[at]) : f8_e4m3_to_f32(m.scales[at]);
  return {0.5f * s, -6.0f * s};
}

inline uint32_t integer_code(const Matrix& m, int64_t row, int64_t col) {
  const uint8_t* data = m.data + row * m.row_bytes();
  if (m.format == MatrixFormat::affine) return load_code(data, col, m.bits);
  return static_cast<uint32_t>(kE2m1Halves[load_code(data, col, 4)] + kE2m1Offset);
}

// Element (row, col) as f32: at most one rounding.
float element(const Matrix& m, int64_t row, int64_t col);

}  // namespace flash_moe::kernels::reference
