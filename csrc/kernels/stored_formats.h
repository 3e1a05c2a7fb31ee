#pragma once
// For ISA files, after their lanes header: rows of a stored matrix as lanes, sixteen inputs at a time.
//
// A reader is made for one row. enter(i) loads what a block of kBlock inputs shares; read(i) gives inputs
// i .. i + 15 of that block. Formats without groups also have read_part for the last n < 16 inputs.

#include <cstring>

#include "kernels/fetch_ahead.h"
#include "kernels/kernels.h"

namespace flash_moe::kernels {
namespace {

inline int64_t scale_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : dtype == Dtype::u8 ? 1 : 2; }

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float scale_value(const uint8_t* base, int64_t index, Dtype dtype) {
  if (dtype == Dtype::f32) {
    float value;
    std::memcpy(&value, base + 4 * index, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, base + 2 * index, sizeof bits);
  return dtype == Dtype::f16 ? f16_value(bits) : bits_to_float(static_cast<uint32_t>(bits) << 16);
}

// 2^(code - 127); 255 is NaN.
inline float e8m0_value(uint8_t code) {
  if (code == 255) return bits_to_float(0x7fc00000u);
  return bits_to_float(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

inline float e4m3_value(uint8_t code) {
  const auto half = static_cast<uint16_t>((code & 0x80u) << 8 | (code & 0x7fu) << 7);
  if ((code & 0x7f) == 0x7f) return bits_to_float(0x7fc00000u);
  return f16_value(half) * 256.0f;
}

inline const uint8_t* row_data(const Matrix& m, int64_t row) { return m.data + row * (m.cols * m.bits / 8); }

template <Lanes (*load_all)(const void*), Lanes (*load_some)(const void*, int64_t), int element_bytes>
struct PlainReader {
  static constexpr int kBlock = 64;
  static constexpr int kBlockBytes = kBlock * element_bytes;
  const uint8_t* data;

  PlainReader(const Matrix& m, int64_t row) : data(row_data(m, row)) {}
  void enter(int64_t) {}
  Lanes read(int64_t i) const { return load_all(data + i * element_bytes); }
  Lanes read_part(int64_t i, int64_t n) const { return load_some(data + i * element_bytes, n); }
};
using F32Reader = PlainReader<load_f32, load_f32_part, 4>;
using F16Reader = PlainReader<load_f16, load_f16_part, 2>;
using Bf16Reader = PlainReader<load_bf16, load_bf16_part, 2>;

template <int bits>
struct AffineReader {
  static constexpr int kBlock = 32;
  static constexpr int kBlockBytes = 4 * bits;
  const uint8_t* data;
  const uint8_t* scales;
  const uint8_t* biases;
  Dtype dtype;
  int shift;  // group = 1 << shift
  Lanes scale, bias;

  AffineReader(const Matrix& m, int64_t row)
      : data(row_data(m, row)), dtype(m.scale_dtype), shift(m.group == 32 ? 5 : m.group == 64 ? 6 : 7) {
    const int64_t at = row * (m.cols >> shift) * scale_bytes(dtype);
    scales = m.scales + at;
    biases = m.biases + at;
  }
  void enter(int64_t i) {
    scale = broadcast(scale_value(scales, i >> shift, dtype));
    bias = broadcast(scale_value(biases, i >> shift, dtype));
  }
  Lanes read(int64_t i) const { return fma(codes<bits>(data + i * bits / 8), scale, bias); }
};

// The E4M3 formats.
struct E4m3Reader {
  static constexpr int kBlock = 32;
  static constexpr int kBlockBytes = 32;
  const uint8_t* data;
  const uint8_t* scales;
  Lanes scale;

  void look_for_nan(NanSearch& search, int64_t i) const { search.look_at(data + i); }
  Lanes read(int64_t i) const { return mul(e4m3_over_256(data + i), scale); }
  Lanes read_numbers(int64_t i) const { return mul(e4m3_numbers_over_256(data + i), scale); }
};

struct Fp8BlockReader : E4m3Reader {
  Dtype dtype;

  Fp8BlockReader(const Matrix& m, int64_t row)
      : E4m3Reader{row_data(m, row), m.scales + row / 128 * ((m.cols + 127) / 128) * scale_bytes(m.scale_dtype), zero()},
        dtype(m.scale_dtype) {}
  void enter(int64_t i) {
    if (i % 128 == 0) scale = broadcast(256.0f * scale_value(scales, i / 128, dtype));
  }
};

struct Mxfp8Reader : E4m3Reader {
  Mxfp8Reader(const Matrix& m, int64_t row)
      : E4m3Reader{row_data(m, row), m.scales + row * (m.cols / 32), zero()} {}
  void enter(int64_t i) { scale = broadcast(256.0f * e8m0_value(scales[i / 32])); }
};

// The E2M1 formats: 32 inputs under a power of two, or 16 under an E4M3 scale.
template <int group>
struct E2m1Reader {
  static constexpr int kBlock = group;
  static constexpr int kBlockBytes = group / 2;
  const uint8_t* data;
  const uint8_t* scales;
  Lanes scale;

  E2m1Reader(const Matrix& m, int64_t row) : data(row_data(m, row)), scales(m.scales + row * (m.cols / group)) {}
  void enter(int64_t i) {
    const uint8_t code = scales[i / group];
    scale = broadcast(0.5f * (group == 32 ? e8m0_value(code) : e4m3_value(code)));
  }
  Lanes read(int64_t i) const { return mul(e2m1_doubled(data + i / 2), scale); }
};
using Mxfp4Reader = E2m1Reader<32>;
using Nvfp4Reader = E2m1Reader<16>;

// Calls fn.template operator()<Reader>() with the reader of the matrix's format.
template <typename Fn>
inline void with_reader(const Matrix& m, Fn fn) {
  switch (m.format) {
    case MatrixFormat::f32:
      return fn.template operator()<F32Reader>();
    case MatrixFormat::f16:
      return fn.template operator()<F16Reader>();
    case MatrixFormat::bf16:
      return fn.template operator()<Bf16Reader>();
    case MatrixFormat::fp8_block:
      return fn.template operator()<Fp8BlockReader>();
    case MatrixFormat::mxfp8:
      return fn.template operator()<Mxfp8Reader>();
    case MatrixFormat::mxfp4:
      return fn.template operator()<Mxfp4Reader>();
    case MatrixFormat::nvfp4:
      return fn.template operator()<Nvfp4Reader>();
    case MatrixFormat::affine:
      break;
  }
  switch (m.bits) {
    case 2:
      return fn.template operator()<AffineReader<2>>();
    case 3:
      return fn.template operator()<AffineReader<3>>();
    case 4:
      return fn.template operator()<AffineReader<4>>();
    case 5:
      return fn.template operator()<AffineReader<5>>();
    case 6:
      return fn.template operator()<AffineReader<6>>();
    default:
      return fn.template operator()<AffineReader<8>>();
  }
}

// Whether Precision::fast multiplies the matrix in integers.
inline bool has_integer_codes(const Matrix& m) {
  return m.format == MatrixFormat::affine || m.format == MatrixFormat::mxfp4 || m.format == MatrixFormat::nvfp4;
}

}  // namespace
}  // namespace flash_moe::kernels
