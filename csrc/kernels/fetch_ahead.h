#pragma once
// For ISA files and who calls them. A product of one row reads its matrix once, from memory, and a core by itself keeps too few of its lines on
// their way: so they are asked for ahead. Addresses beyond the matrix do no harm. Inlined by force: a call without a result is one
// that compilers drop.

#include "base/matrix.h"

namespace flash_moe::kernels {
namespace {

constexpr int64_t kBytesAhead = 4096;
constexpr int64_t kBytesNext = 1024;
constexpr int64_t kBytesNextSideBySide = 256;
constexpr int64_t kScaleRowsAhead = 8;

// Called beside the use of bytes begin .. begin + bytes - 1 of a stored row: asks for as many lines some rows further on, for
// the second-level cache, and of the next row. A few at a time, since many at once stop the core.
[[gnu::always_inline]] inline void fetch_ahead(const uint8_t* row, int64_t begin, int64_t bytes) {
  for (int64_t line = (begin + 63) / 64 * 64; line < begin + bytes; line += 64) {
    __builtin_prefetch(row + line + kBytesAhead, 0, 2);
    __builtin_prefetch(row + line + kBytesNext);
  }
}

// The same for `rows` rows that are read side by side, from `first_row` on: the far lines are those of the rows after them.
[[gnu::always_inline]] inline void fetch_side_by_side(const uint8_t* first_row, int64_t row_bytes, int rows, int64_t begin, int64_t bytes) {
  for (int64_t line = (begin + 63) / 64 * 64; line < begin + bytes; line += 64) {
    for (int row = 0; row < rows; ++row) {
      const uint8_t* here = first_row + row * row_bytes + line;
      __builtin_prefetch(here + rows * row_bytes, 0, 2);
      __builtin_prefetch(here + kBytesNextSideBySide);
    }
  }
}

// The same beside the use of the scales of rows `row` .. `row` + 3.
[[gnu::always_inline]] inline void fetch_scales_ahead(const Matrix& m, int64_t row) {
  const int64_t row_bytes = m.scale_row_bytes();
  const int64_t begin = (row + kScaleRowsAhead) * row_bytes;
  for (int64_t at = begin; at < begin + 4 * row_bytes; at += 64) {
    __builtin_prefetch(m.scales + at);
    if (m.biases != nullptr) __builtin_prefetch(m.biases + at);
  }
}

// What the two above do not reach, for the second-level cache.
[[gnu::always_inline]] inline void fetch_beginning(const Matrix& m) {
  for (int64_t at = 0; at < kBytesAhead; at += 64) __builtin_prefetch(m.data + at, 0, 2);
  for (int64_t at = 0; m.scales != nullptr && at < kScaleRowsAhead * m.scale_row_bytes(); at += 64) {
    __builtin_prefetch(m.scales + at, 0, 2);
    if (m.biases != nullptr) __builtin_prefetch(m.biases + at, 0, 2);
  }
}

}  // namespace
}  // namespace flash_moe::kernels
