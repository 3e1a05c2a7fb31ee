#include "format/affine.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace flash_moe::format {
namespace {

constexpr int64_t group_max = 128;

float load_float(const uint8_t* data, Dtype dtype, int64_t index) {
  if (dtype == Dtype::f32) {
    float value;
    std::memcpy(&value, data + 4 * index, 4);
    return value;
  }
  FM_CHECK(dtype == Dtype::bf16 || dtype == Dtype::f16);
  uint16_t half;
  std::memcpy(&half, data + 2 * index, 2);
  return dtype == Dtype::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

// False when the stored value is not finite.
bool store_float(uint8_t* data, Dtype dtype, int64_t index, float value) {
  if (dtype == Dtype::f32) {
    std::memcpy(data + 4 * index, &value, 4);
    return std::isfinite(value);
  }
  FM_CHECK(dtype == Dtype::bf16 || dtype == Dtype::f16);
  const uint16_t half = dtype == Dtype::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
  std::memcpy(data + 2 * index, &half, 2);
  return std::isfinite(dtype == Dtype::bf16 ? bf16_to_f32(half) : f16_to_f32(half));
}

// Appends codes of `bits` to a little-endian bit stream; count * bits is a multiple of 8.
void pack_codes(const uint8_t* codes, int64_t count, int bits, uint8_t* out) {
  uint32_t pending = 0;
  int pending_bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    pending |= static_cast<uint32_t>(codes[i]) << pending_bits;
    pending_bits += bits;
    for (; pending_bits >= 8; pending_bits -= 8, pending >>= 8) *out++ = static_cast<uint8_t>(pending);
  }
}

struct GroupScale {
  float scale;
  float bias;
};

GroupScale scale_of_group(const float* values, int64_t group, float code_max) {
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  for (int64_t i = 0; i < group; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  const bool low_is_edge = std::fabs(low) > std::fabs(high);
  const float step = std::max((high - low) / code_max, affine_scale_min);
  GroupScale out{low_is_edge ? step : -step, 0.0f};
  const float edge = low_is_edge ? low : high;
  const float edge_code = std::rint(edge / out.scale);
  if (edge_code != 0.0f) {
    out.scale = edge / edge_code;
    out.bias = edge;
  }
  return out;
}

float fp4_value(uint8_t code) {
  constexpr float values[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return code & 8u ? -values[code & 7u] : values[code & 7u];
}

// 2^(s - 127); s = 0 is a subnormal f32, 255 is NaN.
float e8m0_value(uint8_t s) {
  if (s == 255) return std::numeric_limits<float>::quiet_NaN();
  return s == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<uint32_t>(s) << 23);
}

void dequantise_affine(const Matrix& matrix, const uint8_t* data, int64_t scale_row, float* out) {
  const uint32_t mask = (1u << matrix.bits) - 1u;
  int64_t bit = 0;
  const int64_t row_bytes = matrix.row_bytes();
  for (int64_t i = 0; i < matrix.cols; ++i, bit += matrix.bits) {
    const int64_t byte = bit / 8;
    uint32_t word = data[byte];
    if (byte + 1 < row_bytes) word |= static_cast<uint32_t>(data[byte + 1]) << 8;
    const int64_t group = scale_row * matrix.scales_per_row() + i / matrix.group;
    const float code = static_cast<float>((word >> (bit % 8)) & mask);
    out[i] = code * load_float(matrix.scales, matrix.scale_dtype, group) +
             load_float(matrix.biases, matrix.scale_dtype, group);
  }
}

}  // namespace

uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 2^-24 * 2^23 leaves the rounded multiple of 2^-24 in the low bits.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

bool quantise_affine_row(const float* values, const Matrix& form, const AffineRow& out) {
  FM_CHECK(form.group > 0 && form.group <= group_max && form.cols % form.group == 0);
  const float code_max = static_cast<float>((1u << form.bits) - 1u);
  std::array<uint8_t, group_max> codes;
  for (int64_t group = 0; group < form.cols / form.group; ++group) {
    const float* from = values + group * form.group;
    // Comparisons ignore NaN, so that a minimum and maximum would hide one.
    if (!std::all_of(from, from + form.group, [](float value) { return std::isfinite(value); })) return false;
    const GroupScale parts = scale_of_group(from, form.group, code_max);
    for (int64_t i = 0; i < form.group; ++i) {
      const float code = std::rint((from[i] - parts.bias) / parts.scale);
      codes[static_cast<size_t>(i)] = static_cast<uint8_t>(std::min(std::max(code, 0.0f), code_max));
    }
    pack_codes(codes.data(), form.group, form.bits, out.data + group * form.group * form.bits / 8);
    if (!store_float(out.scales, form.scale_dtype, group, parts.scale)) return false;
    if (!store_float(out.biases, form.scale_dtype, group, parts.bias)) return false;
  }
  return true;
}

void dequantise_row(const Matrix& matrix, int64_t row, float* out) {
  FM_CHECK(row >= 0 && row < matrix.rows);
  const uint8_t* data = matrix.data + row * matrix.row_bytes();
  const int64_t scale_row = matrix.format == MatrixFormat::fp8_block ? row / 128 : row;
  const int64_t first_scale = scale_row * matrix.scales_per_row();
  switch (matrix.format) {
    case MatrixFormat::f32:
      std::memcpy(out, data, static_cast<size_t>(matrix.row_bytes()));
      return;
    case MatrixFormat::f16:
    case MatrixFormat::bf16: {
      const Dtype dtype = matrix.format == MatrixFormat::f16 ? Dtype::f16 : Dtype::bf16;
      for (int64_t i = 0; i < matrix.cols; ++i) out[i] = load_float(data, dtype, i);
      return;
    }
    case MatrixFormat::affine:
      dequantise_affine(matrix, data, row, out);
      return;
    case MatrixFormat::fp8_block:
      for (int64_t i = 0; i < matrix.cols; ++i) {
        out[i] = f8_e4m3_to_f32(data[i]) * load_float(matrix.scales, matrix.scale_dtype, first_scale + i / 128);
      }
      return;
    case MatrixFormat::mxfp8:
      for (int64_t i = 0; i < matrix.cols; ++i) {
        out[i] = f8_e4m3_to_f32(data[i]) * e8m0_value(matrix.scales[first_scale + i / matrix.group]);
      }
      return;
    case MatrixFormat::mxfp4:
    case MatrixFormat::nvfp4:
      for (int64_t i = 0; i < matrix.cols; ++i) {
        const uint8_t scale = matrix.scales[first_scale + i / matrix.group];
        const auto code = static_cast<uint8_t>((data[i / 2] >> (4 * (i % 2))) & 15u);
        out[i] = fp4_value(code) * (matrix.format == MatrixFormat::nvfp4 ? f8_e4m3_to_f32(scale) : e8m0_value(scale));
      }
      return;
  }
}

}  // namespace flash_moe::format
