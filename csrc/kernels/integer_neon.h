#pragma once
// For the NEON files: fast rows and exact sums; see integer_rows.h. `natural` holds, for each 64 inputs, their hi bytes and
// then their lo bytes.
//
// Codes are multiplied as signed bytes, by hi and lo apart. Four bytes each make a lane's sum, by SDOT where the file is
// compiled for it, else by widening products: the same integers.

#include "kernels/fast_row.h"
#include "kernels/fetch_ahead.h"
#include "kernels/lanes_neon.h"

namespace flash_moe::kernels {
namespace {

constexpr int kRowsAtOnce = 4;

inline void store_unit_scales(uint8_t* row, const FastRowLayout& layout, int64_t block, float scale, const int32_t* sums16);

inline Lanes twice_each(Lanes x) {
  return {{vzip1q_f32(x.v[0], x.v[0]), vzip2q_f32(x.v[0], x.v[0]), vzip1q_f32(x.v[1], x.v[1]), vzip2q_f32(x.v[1], x.v[1])}};
}

// sum[i] + a[4i] b[4i] + .. + a[4i + 3] b[4i + 3]; no |a b| above 2^14.
inline int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, a, b);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
  const int16x8_t high = vmull_high_s8(a, b);
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

inline int32x4_t join(int32x4_t hi, int32x4_t lo) { return vaddq_s32(vshlq_n_s32(hi, 8), lo); }

inline uint32_t largest_bits(const Lanes* values) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int j = 0; j < 4; ++j) {
    for (const float32x4_t v : values[j].v)
      largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7fffffff)));
  }
  return vmaxvq_u32(largest);
}

inline void encode_block(const Lanes* values, uint8_t* row, const FastRowLayout& layout, int64_t block) {
  const uint32_t max_bits = largest_bits(values);
  float max;
  std::memcpy(&max, &max_bits, sizeof max);
  const BlockScale of = block_scale(max_bits, max);
  int8x16_t hi[4], lo[4];
  int32_t sums[4];
  for (int j = 0; j < 4; ++j) {
    int16x4_t code[4];
    int32x4_t sum = vdupq_n_s32(0);
    for (int i = 0; i < 4; ++i) {
      code[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(values[j].v[i], of.inverse)));
      sum = vaddw_s16(sum, code[i]);
    }
    sums[j] = vaddvq_s32(sum);
    int8x8_t hi_half[2], lo_half[2];
    for (int i = 0; i < 2; ++i) {
      const int16x8_t codes = vcombine_s16(code[2 * i], code[2 * i + 1]);
      const int16x8_t top = vshrq_n_s16(vaddq_s16(codes, vdupq_n_s16(128)), 8);
      hi_half[i] = vmovn_s16(top);
      lo_half[i] = vmovn_s16(vsubq_s16(codes, vshlq_n_s16(top, 8)));
    }
    hi[j] = vcombine_s8(hi_half[0], hi_half[1]);
    lo[j] = vcombine_s8(lo_half[0], lo_half[1]);
  }
  auto* natural = reinterpret_cast<int8_t*>(row + layout.natural + static_cast<size_t>(block) * 128);
  for (int j = 0; j < 4; ++j) {
    vst1q_s8(natural + 16 * j, hi[j]);
    vst1q_s8(natural + 64 + 16 * j, lo[j]);
  }
  auto* pairs = reinterpret_cast<int8_t*>(row + layout.pairs + static_cast<size_t>(block / 2 * kPairChunkBytes + block % 2 * 32));
  for (int j = 0; j < 2; ++j) {
    vst1q_s8(pairs + 16 * j, vuzp1q_s8(hi[2 * j], hi[2 * j + 1]));
    vst1q_s8(pairs + 16 * j + 64, vuzp2q_s8(hi[2 * j], hi[2 * j + 1]));
    vst1q_s8(pairs + 16 * j + 128, vuzp1q_s8(lo[2 * j], lo[2 * j + 1]));
    vst1q_s8(pairs + 16 * j + 192, vuzp2q_s8(lo[2 * j], lo[2 * j + 1]));
  }
  auto* fourths = reinterpret_cast<int8_t*>(row + layout.fourths + static_cast<size_t>(block) * 128);
  for (int i = 0; i < 2; ++i) {
    const int8x16_t* bytes = i == 0 ? hi : lo;
    const int8x16_t even[2] = {vuzp1q_s8(bytes[0], bytes[1]), vuzp1q_s8(bytes[2], bytes[3])};
    const int8x16_t odd[2] = {vuzp2q_s8(bytes[0], bytes[1]), vuzp2q_s8(bytes[2], bytes[3])};
    vst1q_s8(fourths + 64 * i, vuzp1q_s8(even[0], even[1]));
    vst1q_s8(fourths + 64 * i + 16, vuzp1q_s8(odd[0], odd[1]));
    vst1q_s8(fourths + 64 * i + 32, vuzp2q_s8(even[0], even[1]));
    vst1q_s8(fourths + 64 * i + 48, vuzp2q_s8(odd[0], odd[1]));
  }
  store_unit_scales(row, layout, block, of.scale, sums);
}

struct Affine4 {
  static constexpr int kBits = 4;
  static constexpr Order kOrder = Order::pairs;
  static constexpr bool kIsE2m1 = false;
  static int8x16_t adjust(uint8x16_t nibbles) { return vreinterpretq_s8_u8(nibbles); }
};

// E2M1, doubled and offset by 12.
struct E2m1 {
  static constexpr int kBits = 4;
  static constexpr Order kOrder = Order::pairs;
  static constexpr bool kIsE2m1 = true;
  static int8x16_t adjust(uint8x16_t nibbles) {
    static constexpr int8_t kOffset[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    return vqtbl1q_s8(vld1q_s8(kOffset), nibbles);
  }
};

// Codes of 8 bits are lowered by 128 to be signed, and 128 times the sum of the row's bytes is added again.
template <int bits>
struct AffineStream {
  static constexpr int kBits = bits;
  static constexpr Order kOrder = Order::natural;
  static constexpr bool kIsE2m1 = false;
  static constexpr bool kIsLowered = bits == 8;
  static int8x16_t sixteen(const uint8_t* p) {
    const uint8x16_t codes = code_bytes<bits>(p);
    return vreinterpretq_s8_u8(kIsLowered ? veorq_u8(codes, vdupq_n_u8(0x80)) : codes);
  }
};

using Affine3 = AffineStream<3>;

// Sums of the 32 inputs from 32 * half on: lanes 0 and 1 of the first sixteen, lanes 2 and 3 of the second.
template <typename Codec, int rows>
inline void pair_sums(const uint8_t* codes, const FastRow* x, int64_t half, int32x4_t* out) {
  const uint8x16_t raw = vld1q_u8(codes + 16 * half);
  const int8x16_t even = Codec::adjust(vandq_u8(raw, vdupq_n_u8(15)));
  const int8x16_t odd = Codec::adjust(vshrq_n_u8(raw, 4));
  for (int r = 0; r < rows; ++r) {
    const int8_t* q = x[r].inputs + kPairChunkBytes * (half / 4) + 16 * (half % 4);
    const int32x4_t hi = dot(dot(vdupq_n_s32(0), even, vld1q_s8(q)), odd, vld1q_s8(q + 64));
    const int32x4_t lo = dot(dot(vdupq_n_s32(0), even, vld1q_s8(q + 128)), odd, vld1q_s8(q + 192));
    out[r] = join(hi, lo);
  }
}

// Sixty-four codes of 2 bits.
struct Affine2 {
  static constexpr int kBits = 2;
  static constexpr Order kOrder = Order::fourths;
  static constexpr bool kIsE2m1 = false;
};

// Sums of block `block` of 64 inputs (32 of them in the matrix, if it ends there): lanes 0 and 1 of the first half.
template <int rows>
inline void fourths_sums(const uint8_t* codes, const FastRow* x, int64_t block, bool half, int32x4_t* out) {
  const uint8_t* p = codes + 16 * block;
  const uint8x16_t raw = half ? vcombine_u8(vld1_u8(p), vdup_n_u8(0)) : vld1q_u8(p);
  const uint8x16_t mask = vdupq_n_u8(3);
  const uint8x16_t w[4] = {vandq_u8(raw, mask), vandq_u8(vshrq_n_u8(raw, 2), mask), vandq_u8(vshrq_n_u8(raw, 4), mask),
                           vshrq_n_u8(raw, 6)};
  for (int r = 0; r < rows; ++r) {
    const int8_t* q = x[r].inputs + kFourthsChunkBytes / 2 * block;
    int32x4_t hi = vdupq_n_s32(0);
    int32x4_t lo = vdupq_n_s32(0);
    for (int i = 0; i < 4; ++i) {
      hi = dot(hi, vreinterpretq_s8_u8(w[i]), vld1q_s8(q + 16 * i));
      lo = dot(lo, vreinterpretq_s8_u8(w[i]), vld1q_s8(q + 64 + 16 * i));
    }
    out[r] = join(hi, lo);
  }
}

// Sums of a unit of 16 << kind inputs over four lanes.
template <typename Codec, int kind, int rows>
inline void stream_sums(const uint8_t* codes, const FastRow* x, int64_t unit, int32x4_t* out) {
  int32x4_t hi[rows], lo[rows];
  for (int r = 0; r < rows; ++r) hi[r] = lo[r] = vdupq_n_s32(0);
  int32x4_t hi_bytes[rows], lo_bytes[rows];
  for (int r = 0; r < rows; ++r) hi_bytes[r] = lo_bytes[r] = vdupq_n_s32(0);
  const int64_t first = unit << kind;  // in sixteens
  for (int64_t i = first; i < first + (1 << kind); ++i) {
    const int8x16_t w = Codec::sixteen(codes + 2 * Codec::kBits * i);
    for (int r = 0; r < rows; ++r) {
      const int8_t* q = x[r].inputs + 128 * (i / 4) + 16 * (i % 4);
      const int8x16_t x_hi = vld1q_s8(q);
      const int8x16_t x_lo = vld1q_s8(q + 64);
      hi[r] = dot(hi[r], w, x_hi);
      lo[r] = dot(lo[r], w, x_lo);
      if constexpr (Codec::kIsLowered) {
        hi_bytes[r] = dot(hi_bytes[r], vdupq_n_s8(1), x_hi);
        lo_bytes[r] = dot(lo_bytes[r], vdupq_n_s8(1), x_lo);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    out[r] = join(hi[r], lo[r]);
    if constexpr (Codec::kIsLowered) out[r] = vaddq_s32(out[r], vshlq_n_s32(join(hi_bytes[r], lo_bytes[r]), 7));
  }
}

// Units `first` .. `first` + 3 of `rows` rows, 0 beyond the last.
template <typename Codec, int kind, int rows>
inline void four_sums(const uint8_t* codes, const FastRow* x, int64_t first, int64_t cols, float32x4_t* out) {
  // Units of 16 inputs in pairs, or of 32 in fourths, have half a vector; the others have one each.
  constexpr bool kHalves = (Codec::kOrder == Order::pairs && kind == 0) || (Codec::kOrder == Order::fourths && kind == 1);
  constexpr int kVectors = kHalves ? 2 : 4;
  constexpr int64_t kInputs = (kHalves ? 32 : 16) << kind;
  int32x4_t v[rows][4];
  for (int64_t j = 0; j < kVectors; ++j) {
    const int64_t at = first * (16 << kind) + j * kInputs;
    int32x4_t sums[rows];
    for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
    if (at < cols) {
      fetch_ahead(codes, at * Codec::kBits / 8, kInputs * Codec::kBits / 8);
      if constexpr (Codec::kOrder == Order::natural) {
        stream_sums<Codec, kind, rows>(codes, x, first + j, sums);
      } else if constexpr (Codec::kOrder == Order::fourths) {
        fourths_sums<rows>(codes, x, at / 64, at + 64 > cols, sums);
      } else {
        pair_sums<Codec, rows>(codes, x, at / 32, sums);
        if constexpr (kind == 2) {
          int32x4_t second[rows];
          pair_sums<Codec, rows>(codes, x, at / 32 + 1, second);
          for (int r = 0; r < rows; ++r) sums[r] = vaddq_s32(sums[r], second[r]);
        }
      }
    }
    for (int r = 0; r < rows; ++r) v[r][j] = sums[r];
  }
  for (int r = 0; r < rows; ++r) {
    int32x4_t units = vpaddq_s32(v[r][0], v[r][1]);
    if constexpr (kVectors == 4) units = vpaddq_s32(units, vpaddq_s32(v[r][2], v[r][3]));
    out[r] = vcvtq_f32_s32(units);
  }
}

template <typename Codec, int kind, int rows>
inline void exact_sums(const uint8_t* codes, const FastRow* x, int64_t first, int64_t cols, Lanes* out) {
#pragma GCC unroll 1  // four copies of it in each product would take long to compile
  for (int j = 0; j < 4; ++j) {
    float32x4_t sums[rows];
    four_sums<Codec, kind, rows>(codes, x, first + 4 * j, cols, sums);
    for (int r = 0; r < rows; ++r) out[r].v[j] = sums[r];
  }
}

// The eight units of two rows that have no more.
template <typename Codec, int kind>
inline Lanes sums_of_two(const uint8_t* a, const uint8_t* b, const FastRow& x, int64_t cols) {
  Lanes out;
#pragma GCC unroll 1  // as above
  for (int j = 0; j < 4; ++j) four_sums<Codec, kind, 1>(j < 2 ? a : b, &x, j % 2 * 4, cols, &out.v[j]);
  return out;
}

}  // namespace
}  // namespace flash_moe::kernels
