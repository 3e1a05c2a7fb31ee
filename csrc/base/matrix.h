#pragma once
// A weight matrix where it lies in memory, in the format its file has. Quantisation is data here:
// kernels read `format`, nothing above them does.

#include <cstdint>

#include "base/dtype.h"

namespace flash_moe {

// Rows and columns that share a scale in MatrixFormat::fp8_block.
inline constexpr int64_t fp8_block_size = 128;

enum class MatrixFormat : uint8_t {
  f32,
  f16,
  bf16,
  fp8_block,  // F8_E4M3 elements; scales [ceil(rows/128), ceil(cols/128)], value = element * scale
  affine,     // MLX: little-endian bit stream of `bits` a row; value = q * scale + bias, by group
  mxfp4,      // E2M1 nibbles, low nibble first; scales u8 = 2^(s-127), group 32
  mxfp8,      // E4M3 bytes; scales u8 = 2^(s-127), group 32
  nvfp4,      // E2M1 nibbles; scales E4M3, group 16
};

// [rows, cols], row-major; the product is y[rows] = M x[cols]. The memory is not owned and not
// necessarily aligned (an expert lies in its slot at its file's offset modulo the page).
struct Matrix {
  MatrixFormat format = MatrixFormat::f32;
  uint8_t bits = 32;               // a weight, without scales
  uint16_t group = 0;              // inputs that share a scale; 0 when the format has no groups
  Dtype scale_dtype = Dtype::f32;  // of scales, and of biases in affine
  int64_t rows = 0;
  int64_t cols = 0;
  const uint8_t* data = nullptr;    // [rows, cols * bits / 8]
  const uint8_t* scales = nullptr;  // [rows, cols / group], or blocks for fp8_block
  const uint8_t* biases = nullptr;  // affine: as scales

  bool empty() const { return rows == 0; }
  int64_t row_bytes() const { return cols * bits / 8; }
  int64_t scales_per_row() const {
    if (format == MatrixFormat::fp8_block) return (cols + fp8_block_size - 1) / fp8_block_size;
    return group == 0 ? 0 : cols / group;
  }
  int64_t scale_row_bytes() const {
    return scales_per_row() * static_cast<int64_t>(dtype_bytes(scale_dtype));
  }
  int64_t data_bytes() const { return rows * row_bytes(); }
  // Bytes of `scales`; of `biases` too where the format has them.
  int64_t scales_bytes() const {
    const int64_t scale_rows = format == MatrixFormat::fp8_block ? (rows + fp8_block_size - 1) / fp8_block_size : rows;
    return scale_rows * scale_row_bytes();
  }
  int64_t total_bytes() const {
    return data_bytes() + scales_bytes() * (format == MatrixFormat::affine ? 2 : 1);
  }
  // Rows [begin, begin + count). For fp8_block, begin must be a multiple of 128.
  Matrix row_range(int64_t begin, int64_t count) const {
    Matrix part = *this;
    part.rows = count;
    part.data = data + begin * row_bytes();
    const int64_t scale_row = format == MatrixFormat::fp8_block ? begin / fp8_block_size : begin;
    if (scales) part.scales = scales + scale_row * scale_row_bytes();
    if (biases) part.biases = biases + scale_row * scale_row_bytes();
    return part;
  }
};

// One routed expert as it lies in a slot: down(silu(gate x) * up x).
struct ExpertMatrices {
  Matrix gate;  // [moe_inner, hidden]
  Matrix up;    // [moe_inner, hidden]
  Matrix down;  // [hidden, moe_inner]
};

}  // namespace flash_moe
