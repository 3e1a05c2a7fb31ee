#pragma once
// For ISA files: where the parts of a fast row lie. All of them are zero beyond the row's inputs.
//
// DESIGN: an input's code c (16 bits) is stored as two signed bytes, c = 256 * hi + lo. A byte of 4-bit codes holds an even
// and an odd input, and a byte of 2-bit codes four: a shift and a mask give every second or every fourth input of a vector of
// them, so that the row is stored in these orders, too.
//   f32      [cols]
//   pairs    for each 128 inputs: hi of the 64 even ones, hi of the odd ones, lo of the even ones, lo of the odd ones
//   natural  256 bytes for each 128 inputs, in their order: the ISA's integer file says which
//   fourths  for as many inputs as have their 2-bit codes in a vector of the ISA: hi of every fourth one from the first,
//            from the second, the third and the fourth on, then lo of the same
//   words    AVX2 alone: 128 bytes for each 64 inputs, c of every fourth one from the first, the second, the third and the
//            fourth on, in the order of integer_avx2.h
//   scales   f32 of each unit of 16, 32 and 64 inputs (equal within 64)
//   sums     f32 of each unit: scale * (sum of its codes)

#include <cstddef>
#include <cstdint>

namespace flash_moe::kernels {
namespace {

constexpr int64_t kChunk = 128;
constexpr int64_t kPairChunkBytes = 256;
constexpr int64_t kNaturalChunkBytes = 256;
constexpr int64_t kFourthsChunkBytes = 256;
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int64_t kWordsChunkBytes = 256;
#else
constexpr int64_t kWordsChunkBytes = 0;
#endif
constexpr float kRowCodeMax = 32512.0f;
constexpr int kUnitKinds = 3;  // units of 16 << kind inputs

// In which of its orders a row meets a codec's codes.
enum class Order { natural, pairs, fourths, words };

struct FastRowLayout {
  int64_t chunks;  // even, so that vectors of 256 inputs end with the row
  size_t pairs;
  size_t natural;
  size_t fourths;
  size_t words;
  size_t scales[kUnitKinds];
  size_t sums[kUnitKinds];
  size_t bytes;
};

inline FastRowLayout fast_row_layout(int64_t cols) {
  FastRowLayout layout{};
  layout.chunks = (cols + 2 * kChunk - 1) / (2 * kChunk) * 2;
  const auto chunks = static_cast<size_t>(layout.chunks);
  layout.pairs = (static_cast<size_t>(cols) * 4 + 63) / 64 * 64;
  layout.natural = layout.pairs + chunks * kPairChunkBytes;
  layout.fourths = layout.natural + chunks * kNaturalChunkBytes;
  layout.words = layout.fourths + chunks * kFourthsChunkBytes;
  size_t at = layout.words + chunks * kWordsChunkBytes;
  for (int kind = 0; kind < kUnitKinds; ++kind) {
    const size_t units = chunks * (static_cast<size_t>(kChunk) >> (4 + kind));
    const size_t bytes = (units + 15) / 16 * 64;
    layout.scales[kind] = at;
    layout.sums[kind] = at + bytes;
    at += 2 * bytes;
  }
  layout.bytes = at;
  return layout;
}

struct FastRow {
  const int8_t* inputs;  // in the order asked for
  const float* scales;   // of the matrix's units
  const float* sums;
};

inline FastRow fast_row(const uint8_t* row, const FastRowLayout& layout, Order order, int unit_kind) {
  const size_t at = order == Order::words     ? layout.words
                    : order == Order::fourths ? layout.fourths
                    : order == Order::pairs   ? layout.pairs
                                              : layout.natural;
  return {reinterpret_cast<const int8_t*>(row + at), reinterpret_cast<const float*>(row + layout.scales[unit_kind]),
          reinterpret_cast<const float*>(row + layout.sums[unit_kind])};
}

inline size_t fast_row_bytes(int64_t cols) { return fast_row_layout(cols).bytes; }

// How a matrix is cut: within a unit sums are exact integers, and a unit has one weight scale and one row scale.
struct UnitShape {
  int kind;         // 16 << kind inputs
  int group_shift;  // units per group = 1 << group_shift
  int64_t count;
};

inline UnitShape unit_shape(int64_t cols, int group) {
  const int kind = group == 16 ? 0 : group == 32 ? 1 : 2;
  return {kind, group == 128 ? 1 : 0, cols >> (4 + kind)};
}

// Scale of a block of 64 inputs from the bits of its largest magnitude, and what turns inputs into codes.
struct BlockScale {
  float scale;
  float inverse;
};

inline BlockScale block_scale(uint32_t max_bits, float max) {
  if (max_bits >= 0x7f800000u) return {max - max, 0.0f};  // NaN
  if (max < 0x1p-100f) return {0.0f, 0.0f};
  return {max / kRowCodeMax, kRowCodeMax / max};
}

}  // namespace
}  // namespace flash_moe::kernels
