#pragma once
// For the VNNI and AMX files: fast rows, codes and scales in AVX-512 (with VBMI). In `natural` each 64 inputs are
// the hi bytes of all, then the lo bytes of all.

#include "kernels/fast_row.h"
#include "kernels/lanes_avx512.h"
#include "kernels/stored_formats.h"

namespace flash_moe::kernels {
namespace {

inline __m512i load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline __mmask64 first_bytes(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
}

// In each 128-bit lane: the sums of a's, b's, c's and d's four words.
inline __m512i sum_words(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// ---- Rows ------------------------------------------------------------------------------------------------

inline __m512i even_then_odd_bytes(__m512i x) {
  alignas(64) static constexpr uint8_t kIndex[64] = {
      0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
      44, 46, 48, 50, 52, 54, 56, 58, 60, 62, 1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23,
      25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutexvar_epi8(_mm512_load_si512(kIndex), x);
}

// In each quarter of the result: bytes 0, 4, .. 60 of x, then 1, 5, .. 61 and so on.
inline __m512i every_fourth_byte(__m512i x) {
  const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(x, within));
}

inline __m512i join_bytes(const __m128i* quarters) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarters[0]), quarters[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarters[2]), quarters[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Scales and sums of the units within block `block` of 64 inputs; `sums16` are its four sums of codes.
inline void store_unit_scales(uint8_t* row, const FastRowLayout& layout, int64_t block, float scale, __m128i sums16) {
  const auto floats = [&](size_t at) { return reinterpret_cast<float*>(row + at); };
  const __m128i sums32 = _mm_hadd_epi32(sums16, sums16);
  const __m128i sums64 = _mm_hadd_epi32(sums32, sums32);
  const __m128 s = _mm_set1_ps(scale);
  _mm_storeu_ps(floats(layout.scales[0]) + 4 * block, s);
  _mm_storeu_ps(floats(layout.sums[0]) + 4 * block, _mm_mul_ps(_mm_cvtepi32_ps(sums16), s));
  _mm_storel_pi(reinterpret_cast<__m64*>(floats(layout.scales[1]) + 2 * block), s);
  _mm_storel_pi(reinterpret_cast<__m64*>(floats(layout.sums[1]) + 2 * block), _mm_mul_ps(_mm_cvtepi32_ps(sums32), s));
  _mm_store_ss(floats(layout.scales[2]) + block, s);
  _mm_store_ss(floats(layout.sums[2]) + block, _mm_mul_ps(_mm_cvtepi32_ps(sums64), s));
}

// Block `block` of 64 inputs, from x + 64 * block; `n` of them exist.
inline void encode_block(const float* x, int64_t n, uint8_t* row, const FastRowLayout& layout, int64_t block) {
  __m512 values[4];
  __m512i largest = _mm512_setzero_si512();
  for (int j = 0; j < 4; ++j) {
    const int64_t here = n - 16 * j;
    values[j] = here >= 16 ? load(x + 16 * j) : here > 0 ? load_part(x + 16 * j, here) : zero();
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(values[j]), _mm512_set1_epi32(0x7fffffff));
    largest = _mm512_max_epu32(largest, magnitude);
  }
  const uint32_t max_bits = _mm512_reduce_max_epu32(largest);
  const BlockScale block_of = block_scale(max_bits, bits_to_float(max_bits));
  const __m512 inverse = broadcast(block_of.inverse);
  __m512i code[4];
  __m128i hi[4], lo[4];
  for (int j = 0; j < 4; ++j) {
    code[j] = _mm512_cvtps_epi32(mul(values[j], inverse));
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(code[j], _mm512_set1_epi32(128)), 8);
    hi[j] = _mm512_cvtepi32_epi8(high);
    lo[j] = _mm512_cvtepi32_epi8(_mm512_sub_epi32(code[j], _mm512_slli_epi32(high, 8)));
  }
  const __m512i all_hi = join_bytes(hi);
  const __m512i all_lo = join_bytes(lo);
  uint8_t* natural = row + layout.natural + static_cast<size_t>(block) * 128;
  _mm512_storeu_si512(natural, all_hi);
  _mm512_storeu_si512(natural + 64, all_lo);
  uint8_t* pairs = row + layout.pairs + static_cast<size_t>(block / 2 * kPairChunkBytes + block % 2 * 32);
  const auto put = [&](int offset, __m256i half) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + offset), half); };
  const __m512i split_hi = even_then_odd_bytes(all_hi);
  const __m512i split_lo = even_then_odd_bytes(all_lo);
  put(0, _mm512_castsi512_si256(split_hi));
  put(64, _mm512_extracti64x4_epi64(split_hi, 1));
  put(128, _mm512_castsi512_si256(split_lo));
  put(192, _mm512_extracti64x4_epi64(split_lo, 1));
  uint8_t* fourths = row + layout.fourths + static_cast<size_t>(block / 4 * 2 * kFourthsChunkBytes + block % 4 * 16);
  const auto put_quarters = [&](int offset, __m512i bytes) {
    const auto at = [&](int i) { return reinterpret_cast<__m128i*>(fourths + offset + 64 * i); };
    _mm_storeu_si128(at(0), _mm512_castsi512_si128(bytes));
    _mm_storeu_si128(at(1), _mm512_extracti32x4_epi32(bytes, 1));
    _mm_storeu_si128(at(2), _mm512_extracti32x4_epi32(bytes, 2));
    _mm_storeu_si128(at(3), _mm512_extracti32x4_epi32(bytes, 3));
  };
  put_quarters(0, every_fourth_byte(all_hi));
  put_quarters(256, every_fourth_byte(all_lo));
  const __m512i sums = sum_words(code[0], code[1], code[2], code[3]);
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  const __m128i sums16 = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  store_unit_scales(row, layout, block, block_of.scale, sums16);
}

inline void prepare_fast_row(const float* x, int64_t cols, uint8_t* dst) {
  const FastRowLayout layout = fast_row_layout(cols);
  auto* floats = reinterpret_cast<float*>(dst);
  int64_t i = 0;
  for (; i + 16 <= cols; i += 16) store(floats + i, load(x + i));
  if (i < cols) store(floats + i, load_part(x + i, cols - i));
  for (size_t at = layout.scales[0]; at < layout.bytes; at += 64) store(reinterpret_cast<float*>(dst + at), zero());
  for (int64_t block = 0; block < 2 * layout.chunks; ++block) {
    const int64_t left = cols - 64 * block;
    encode_block(x + (left > 0 ? 64 * block : 0), left > 64 ? 64 : left > 0 ? left : 0, dst, layout, block);
  }
}

// ---- Codes -----------------------------------------------------------------------------------------------

// Codecs of order `pairs` give the codes of 128 inputs as 64 even and 64 odd ones; `inputs` of them exist. They read kVectorBytes.
// Panel is the codec for products of several rows: 4 bits in pairs, or natural order.
struct PairCodes {
  __m512i even, odd;
};

struct Affine4 {
  static constexpr Order kOrder = Order::pairs;
  static constexpr int64_t kVectorBytes = 64;
  static constexpr bool kIsE2m1 = false;
  using Panel = Affine4;
  static __m512i adjust(__m512i nibbles) { return nibbles; }
  static PairCodes read(const uint8_t* row, int64_t chunk, int64_t inputs) {
    const uint8_t* p = row + 64 * chunk;
    const __m512i raw = inputs == kChunk ? load_bytes(p) : _mm512_maskz_loadu_epi8(first_bytes(inputs / 2), p);
    const __m512i mask = _mm512_set1_epi8(15);
    return {_mm512_and_si512(raw, mask), _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask)};
  }
};

// E2M1, doubled and offset by 12.
struct E2m1 {
  static constexpr Order kOrder = Order::pairs;
  static constexpr int64_t kVectorBytes = 64;
  static constexpr bool kIsE2m1 = true;
  using Panel = E2m1;
  static __m512i adjust(__m512i nibbles) {
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles);
  }
  static PairCodes read(const uint8_t* row, int64_t chunk, int64_t inputs) {
    const PairCodes nibbles = Affine4::read(row, chunk, inputs);
    return {adjust(nibbles.even), adjust(nibbles.odd)};
  }
};

// Eight codes lie in `bits` bytes: those go to one 64-bit element, and out of it come the eight.
template <int bits>
struct StreamPlaces {
  alignas(64) uint8_t bytes[64] = {};
  alignas(64) uint8_t shifts[64] = {};
  constexpr StreamPlaces() {
    for (int i = 0; i < 64; ++i) {
      bytes[i] = static_cast<uint8_t>(i % 8 < bits ? i / 8 * bits + i % 8 : 0);
      shifts[i] = static_cast<uint8_t>(i % 8 * bits);
    }
  }
};
template <int bits>
constexpr StreamPlaces<bits> kStreamPlaces;

// Those of natural order give the codes of 64 inputs.
template <int bits>
struct AffineStream {
  static constexpr Order kOrder = Order::natural;
  static constexpr int64_t kVectorBytes = 8 * bits;
  static constexpr bool kIsE2m1 = false;
  using Panel = AffineStream<bits>;
  static __m512i read(const uint8_t* row, int64_t block, int64_t inputs) {
    const uint8_t* p = row + 8 * bits * block;
    if (bits == 8 && inputs == 64) return load_bytes(p);
    const __m512i raw = _mm512_maskz_loadu_epi8(first_bytes(inputs * bits / 8), p);
    if constexpr (bits == 8) return raw;
    const __m512i spread = _mm512_permutexvar_epi8(_mm512_load_si512(kStreamPlaces<bits>.bytes), raw);
    const __m512i codes = _mm512_multishift_epi64_epi8(_mm512_load_si512(kStreamPlaces<bits>.shifts), spread);
    return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>((1 << bits) - 1)));
  }
};

// One row of 3 bits: sixteen codes lie in six bytes, those go to one 64-bit element, and out of it come the even and the odd.
struct SixBytePlaces {
  alignas(64) uint8_t bytes[64] = {};
  alignas(64) uint8_t even_shifts[64] = {};
  alignas(64) uint8_t odd_shifts[64] = {};
  constexpr SixBytePlaces() {
    for (int i = 0; i < 64; ++i) {
      bytes[i] = static_cast<uint8_t>(i % 8 < 6 ? i / 8 * 6 + i % 8 : 0);
      even_shifts[i] = static_cast<uint8_t>(i % 8 * 6);
      odd_shifts[i] = static_cast<uint8_t>(i % 8 * 6 + 3);
    }
  }
};
constexpr SixBytePlaces kSixBytePlaces;

struct Affine3 {
  static constexpr Order kOrder = Order::pairs;
  static constexpr int64_t kVectorBytes = 48;
  static constexpr bool kIsE2m1 = false;
  using Panel = AffineStream<3>;
  static PairCodes read(const uint8_t* row, int64_t chunk, int64_t inputs) {
    const __m512i raw = _mm512_maskz_loadu_epi8(first_bytes(inputs * 3 / 8), row + 48 * chunk);
    const __m512i spread = _mm512_permutexvar_epi8(_mm512_load_si512(kSixBytePlaces.bytes), raw);
    const __m512i mask = _mm512_set1_epi8(7);
    const auto codes = [&](const uint8_t* shifts) {
      return _mm512_and_si512(_mm512_multishift_epi64_epi8(_mm512_load_si512(shifts), spread), mask);
    };
    return {codes(kSixBytePlaces.even_shifts), codes(kSixBytePlaces.odd_shifts)};
  }
};

// 256 inputs: every fourth one from the first, second, third and fourth on.
struct FourCodes {
  __m512i from[4];
};

struct Affine2 {
  static constexpr Order kOrder = Order::fourths;
  static constexpr int64_t kVectorBytes = 64;
  static constexpr bool kIsE2m1 = false;
  using Panel = AffineStream<2>;
  static FourCodes read(const uint8_t* row, int64_t vector, int64_t inputs) {
    const uint8_t* p = row + 64 * vector;
    const __m512i raw = inputs == 256 ? load_bytes(p) : _mm512_maskz_loadu_epi8(first_bytes(inputs / 4), p);
    const __m512i mask = _mm512_set1_epi8(3);
    return {{_mm512_and_si512(raw, mask), _mm512_and_si512(_mm512_srli_epi16(raw, 2), mask),
             _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask), _mm512_and_si512(_mm512_srli_epi16(raw, 6), mask)}};
  }
};

// ---- Scales ----------------------------------------------------------------------------------------------

struct ScaleLanes {
  Lanes scale, bias;
};

inline Lanes load_scales(const uint8_t* p, int64_t n, Dtype dtype) {
  const __mmask16 mask = first_lanes(n);
  if (dtype == Dtype::f32) return _mm512_maskz_loadu_ps(mask, p);
  const __m256i raw = _mm256_maskz_loadu_epi16(mask, p);
  return dtype == Dtype::f16 ? _mm512_cvtph_ps(raw) : from_bf16(raw);
}

inline Lanes e8m0_lanes(__m128i codes) {
  const __m512i code = _mm512_cvtepu8_epi32(codes);
  __m512i bits = _mm512_slli_epi32(code, 23);
  bits = _mm512_mask_mov_epi32(bits, _mm512_testn_epi32_mask(code, code), _mm512_set1_epi32(0x00400000));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(255));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000)));
}

struct MatrixScales {
  const uint8_t* scales;
  const uint8_t* biases;
  int64_t row_groups;
  Dtype dtype;
  MatrixFormat format;
  UnitShape units;

  explicit MatrixScales(const Matrix& m)
      : scales(m.scales), biases(m.biases), row_groups(m.cols / m.group), dtype(m.scale_dtype), format(m.format),
        units(unit_shape(m.cols, m.group)) {}

  // Of units `first` .. `first` + 15 of a row, 0 beyond the last; `first` is a multiple of 16.
  ScaleLanes read(int64_t row, int64_t first) const {
    const int64_t left = units.count - first;
    return read_units(row * row_groups + (first >> units.group_shift), left < 16 ? left : 16);
  }

  // Of `n` units from the first of group `at` on, counted over all rows; 0 beyond.
  ScaleLanes read_units(int64_t at, int64_t n) const {
    if (format == MatrixFormat::affine) {
      const int64_t groups = (n + units.group_shift) >> units.group_shift;
      const int64_t offset = at * scale_bytes(dtype);
      Lanes scale = load_scales(scales + offset, groups, dtype);
      Lanes bias = load_scales(biases + offset, groups, dtype);
      if (units.group_shift != 0) {
        const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        scale = _mm512_permutexvar_ps(twice, scale);
        bias = _mm512_permutexvar_ps(twice, bias);
      }
      return {scale, bias};
    }
    const __m128i codes = _mm_maskz_loadu_epi8(first_lanes(n), scales + at);
    if (format == MatrixFormat::mxfp4) {
      const Lanes scale = _mm512_maskz_mov_ps(first_lanes(n), e8m0_lanes(codes));
      return {mul(scale, broadcast(0.5f)), mul(scale, broadcast(-6.0f))};
    }
    alignas(16) uint8_t bytes[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes);
    const Lanes scale = e4m3_over_256(bytes);
    return {mul(scale, broadcast(128.0f)), mul(scale, broadcast(-1536.0f))};
  }
};

// Calls fn.template operator()<Codec>() with the codec of a matrix with integer codes.
template <typename Fn>
inline void with_codec(const Matrix& m, Fn fn) {
  if (m.format != MatrixFormat::affine) return fn.template operator()<E2m1>();
  switch (m.bits) {
    case 2:
      return fn.template operator()<Affine2>();
    case 3:
      return fn.template operator()<Affine3>();
    case 4:
      return fn.template operator()<Affine4>();
    case 5:
      return fn.template operator()<AffineStream<5>>();
    case 6:
      return fn.template operator()<AffineStream<6>>();
    default:
      return fn.template operator()<AffineStream<8>>();
  }
}

}  // namespace
}  // namespace flash_moe::kernels
