#pragma once
// Random matrices in every stored format, with their values in double, in memory that ends at a guard page.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/matrix.h"

namespace test {

using flash_moe::Dtype;
using flash_moe::Matrix;
using flash_moe::MatrixFormat;

// `bytes` bytes that end `slack` bytes before a page that faults: reading past them by more is a crash.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t bytes, size_t slack = 0) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + slack + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) {
      throw std::runtime_error("no guard page");
    }
    data_ = base_ + mapped_ - page - slack - bytes;
  }
  GuardedBytes(GuardedBytes&& other) noexcept
      : base_(other.base_), data_(other.data_), mapped_(other.mapped_) {
    other.base_ = nullptr;
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() {
    if (base_) munmap(base_, mapped_);
  }
  uint8_t* data() const { return data_; }

 private:
  uint8_t* base_ = nullptr;
  uint8_t* data_ = nullptr;
  size_t mapped_ = 0;
};

struct FormatCase {
  MatrixFormat format;
  int bits;
  int group;
  Dtype scale_dtype;

  std::string name() const {
    constexpr const char* names[] = {"f32", "f16", "bf16", "fp8_block", "affine", "mxfp4", "mxfp8", "nvfp4"};
    return std::string(names[static_cast<int>(format)]) + " bits " + std::to_string(bits) + " group " +
           std::to_string(group) + " scales " + flash_moe::dtype_name(scale_dtype);
  }
};

inline std::vector<FormatCase> all_formats() {
  std::vector<FormatCase> all = {
      {MatrixFormat::f32, 32, 0, Dtype::f32},       {MatrixFormat::f16, 16, 0, Dtype::f32},
      {MatrixFormat::bf16, 16, 0, Dtype::f32},      {MatrixFormat::fp8_block, 8, 0, Dtype::f32},
      {MatrixFormat::fp8_block, 8, 0, Dtype::bf16}, {MatrixFormat::mxfp4, 4, 32, Dtype::u8},
      {MatrixFormat::mxfp8, 8, 32, Dtype::u8},      {MatrixFormat::nvfp4, 4, 16, Dtype::u8},
  };
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
        all.push_back({MatrixFormat::affine, bits, group, dtype});
      }
    }
  }
  return all;
}

// What the bytes of an element mean, in double, written apart from the library's own conversions.
inline double float_bits_value(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double sign = (bits >> (mantissa_bits + exponent_bits)) & 1 ? -1.0 : 1.0;
  if (exponent == 0) return sign * std::ldexp(static_cast<double>(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(static_cast<double>(mantissa + (1u << mantissa_bits)), exponent - bias - mantissa_bits);
}

class StoredMatrix {
 public:
  // `slack`: bytes between the end of each buffer and its guard page.
  StoredMatrix(const FormatCase& format, int64_t rows, int64_t cols, uint32_t seed, size_t slack = 0)
      : random_(seed), m_(shape_of(format, rows, cols)),
        data_(static_cast<size_t>(m_.data_bytes()), slack),
        scales_(static_cast<size_t>(m_.scales_bytes()), slack),
        biases_(format.format == MatrixFormat::affine ? static_cast<size_t>(m_.scales_bytes()) : 0, slack),
        values(static_cast<size_t>(rows * cols)) {
    m_.data = data_.data();
    if (m_.scales_per_row() > 0) m_.scales = scales_.data();
    if (format.format == MatrixFormat::affine) m_.biases = biases_.data();
    std::memset(data_.data(), 0, static_cast<size_t>(m_.data_bytes()));
    fill_scales();
    for (int64_t o = 0; o < rows; ++o) {
      for (int64_t i = 0; i < cols; ++i) values[static_cast<size_t>(o * cols + i)] = fill_element(o, i);
    }
  }
  const Matrix& matrix() const { return m_; }

 private:
  static Matrix shape_of(const FormatCase& format, int64_t rows, int64_t cols) {
    Matrix m;
    m.format = format.format;
    m.bits = static_cast<uint8_t>(format.bits);
    m.group = static_cast<uint16_t>(format.group);
    m.scale_dtype = format.scale_dtype;
    m.rows = rows;
    m.cols = cols;
    return m;
  }

  // Stores a float of about `value` in `dtype` and returns what was stored.
  static double store(uint8_t* base, size_t index, Dtype dtype, double value) {
    const auto f = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (dtype == Dtype::f32) {
      std::memcpy(base + 4 * index, &bits, 4);
      return static_cast<double>(f);
    }
    if (dtype == Dtype::bf16) {
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(base + 2 * index, &half, 2);
      return float_bits_value(half, 8, 7);
    }
    const int exponent = static_cast<int>((bits >> 23) & 255) - 112;
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = exponent <= 0 ? (bits >> 13) & 0x3ffu  // a subnormal
                                        : static_cast<uint32_t>(exponent) << 10 | ((bits >> 13) & 0x3ffu);
    const auto half = static_cast<uint16_t>(sign | rest);
    std::memcpy(base + 2 * index, &half, 2);
    return float_bits_value(half, 5, 10);
  }

  void fill_scales() {
    const auto count = static_cast<size_t>(m_.scales_bytes()) / flash_moe::dtype_bytes(m_.scale_dtype);
    for (size_t i = 0; i < count; ++i) {
      const double magnitude = 0.01 + 0.02 * uniform();
      if (m_.format == MatrixFormat::mxfp4 || m_.format == MatrixFormat::mxfp8) {
        scales_.data()[i] = static_cast<uint8_t>(random_() % 16 == 0 ? random_() % 2 : 117 + random_() % 10);
        const int code = scales_.data()[i];
        scale_values_.push_back(std::ldexp(1.0, code - 127));
      } else if (m_.format == MatrixFormat::nvfp4) {
        scales_.data()[i] = static_cast<uint8_t>(random_() % 0x7f);
        scale_values_.push_back(float_bits_value(scales_.data()[i], 4, 3));
      } else {
        const double sign = random_() % 4 == 0 ? -1 : 1;
        scale_values_.push_back(store(scales_.data(), i, m_.scale_dtype, sign * magnitude));
      }
      if (m_.format == MatrixFormat::affine) {
        const double bias = -scale_values_.back() * ((1 << m_.bits) - 1) * (0.3 + 0.4 * uniform());
        bias_values_.push_back(store(biases_.data(), i, m_.scale_dtype, bias));
      }
    }
  }

  double fill_element(int64_t o, int64_t i) {
    const auto at = static_cast<size_t>(o * m_.cols + i);
    if (m_.format <= MatrixFormat::bf16) {
      const Dtype dtype = m_.format == MatrixFormat::f32   ? Dtype::f32
                          : m_.format == MatrixFormat::f16 ? Dtype::f16
                                                           : Dtype::bf16;
      return store(data_.data(), at, dtype, random_() % 64 == 0 ? 1e-7 * uniform() : 0.2 * (uniform() - 0.5));
    }
    const int64_t scale_row = m_.format == MatrixFormat::fp8_block ? o / 128 : o;
    const int64_t scale_col = m_.format == MatrixFormat::fp8_block ? i / 128 : i / m_.group;
    const auto scale_at = static_cast<size_t>(scale_row * m_.scales_per_row() + scale_col);
    const double scale = scale_values_[scale_at];
    if (m_.format == MatrixFormat::fp8_block || m_.format == MatrixFormat::mxfp8) {
      const auto code = static_cast<uint8_t>((random_() % 2) << 7 | random_() % 0x7f);
      data_.data()[at] = code;
      return float_bits_value(code, 4, 3) * scale;
    }
    const auto code = static_cast<uint32_t>(random_() & ((1u << m_.bits) - 1));
    const int64_t bit = i * m_.bits;
    for (int64_t b = 0; b < m_.bits; ++b) {
      uint8_t& byte = data_.data()[o * m_.row_bytes() + (bit + b) / 8];
      byte = static_cast<uint8_t>(byte | ((code >> b & 1u) << ((bit + b) % 8)));
    }
    if (m_.format == MatrixFormat::affine) return code * scale + bias_values_[scale_at];
    return float_bits_value(code, 2, 1) * scale;
  }

  double uniform() { return static_cast<double>(random_()) / 4294967296.0; }

  std::mt19937 random_;
  Matrix m_;
  GuardedBytes data_, scales_, biases_;
  std::vector<double> scale_values_, bias_values_;

 public:
  std::vector<double> values;  // [rows, cols]
};

}  // namespace test
