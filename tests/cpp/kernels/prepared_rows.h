#pragma once
// Random input rows, prepared by a table, and the product of a matrix with them.
#include <cstring>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/stored_matrix.h"

namespace test {

using flash_moe::kernels::Kernels;
using flash_moe::kernels::MatmulArgs;
using flash_moe::kernels::Precision;

class InputRows {
 public:
  // Values of a normal distribution; one in 97 is 30 times larger, and one row in 5 is 0 in its second half.
  InputRows(int64_t count, int64_t cols, uint32_t seed)
      : count_(count), cols_(cols), values_(static_cast<size_t>(count * cols)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < values_.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / cols;
      const bool zero = row % 5 == 4 && static_cast<int64_t>(i) % cols >= cols / 2;
      values_[i] = zero ? 0.0f : normal(random) * (random() % 97 == 0 ? 30.0f : 1.0f);
    }
  }
  int64_t count() const { return count_; }
  int64_t cols() const { return cols_; }
  float* row(int64_t r) { return values_.data() + r * cols_; }
  const float* row(int64_t r) const { return values_.data() + r * cols_; }

 private:
  int64_t count_;
  int64_t cols_;
  std::vector<float> values_;
};

class PreparedRows {
 public:
  PreparedRows(const Kernels& kernels, const InputRows& rows)
      : kernels_(&kernels), count_(rows.count()), stride_(kernels.prepared_bytes(rows.cols())),
        bytes_(stride_ * static_cast<size_t>(rows.count())) {
    // Rows may hold bytes that the table never writes: no result may depend on them.
    std::memset(bytes_.data(), 0xa5, stride_ * static_cast<size_t>(rows.count()));
    for (int64_t r = 0; r < rows.count(); ++r) {
      kernels.prepare_row(rows.row(r), rows.cols(), bytes_.data() + stride_ * static_cast<size_t>(r));
    }
  }

  // y [row_count or x_rows.size(), matrix.rows]; elements outside [out_begin, out_end) keep `untouched`.
  static constexpr float kUntouched = -12345.0f;
  std::vector<float> matmul(const Matrix& matrix, int64_t out_begin, int64_t out_end,
                            const std::vector<int32_t>& x_rows = {}) const {
    const int64_t count = x_rows.empty() ? count_ : static_cast<int64_t>(x_rows.size());
    std::vector<float> y(static_cast<size_t>(count * matrix.rows), kUntouched);
    MatmulArgs args;
    args.matrix = matrix;
    args.x = bytes_.data();
    args.x_stride = stride_;
    args.x_rows = x_rows.empty() ? nullptr : x_rows.data();
    args.row_count = count;
    args.y = y.data();
    args.y_stride = matrix.rows;
    args.out_begin = out_begin;
    args.out_end = out_end;
    kernels_->matmul(args);
    return y;
  }
  std::vector<float> matmul(const Matrix& matrix) const { return matmul(matrix, 0, matrix.rows); }

 private:
  const Kernels* kernels_;
  int64_t count_;
  size_t stride_;
  GuardedBytes bytes_;
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Every table for both precisions.
inline std::vector<const Kernels*> all_tables() {
  std::vector<const Kernels*> all;
  for (Precision precision : {Precision::float32, Precision::fast}) {
    for (const Kernels* const* k = flash_moe::kernels::available_kernels(precision); *k; ++k) {
      if ((*k)->has_reference_bits) all.push_back(*k);
    }
  }
  return all;
}

// all_tables() without the two of the reference: comparing those with it would compare it with itself.
inline std::vector<const Kernels*> tables_beside_reference() {
  std::vector<const Kernels*> all = all_tables();
  std::erase_if(all, [](const Kernels* k) { return k == &flash_moe::kernels::reference_kernels(k->precision); });
  return all;
}

}  // namespace test
