#pragma once
// Sixteen f32 lanes as one AVX-512 register, and the stored formats as lanes. Everything is in an anonymous
// namespace, as in every header for ISA files: a shared inline function would leak this ISA to all callers.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace flash_moe::kernels {
namespace {

using Lanes = __m512;

// Results of one microkernel of the float product: accumulators that fit the registers.
constexpr int kTileOuts = 4;
constexpr int kTileRows = 6;
constexpr int kAttentionHeads = 4;
constexpr int kAttentionVectors = 4;

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline Lanes zero() { return _mm512_setzero_ps(); }
inline Lanes broadcast(float x) { return _mm512_set1_ps(x); }
inline Lanes load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Lanes x) { _mm512_storeu_ps(p, x); }
// For results that are not read again soon; p is 64-byte aligned. Other threads may read after end_stores_past_caches.
inline void store_past_caches(float* p, Lanes x) { _mm512_stream_ps(p, x); }
inline void end_stores_past_caches() { _mm_sfence(); }
// The first n lanes (0 < n < 16); the others are 0, and nothing beyond them is touched.
inline Lanes load_part(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store_part(float* p, Lanes x, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes sub(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
inline Lanes mul(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
inline Lanes div(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
// a > b ? a : b and a < b ? a : b: b where one is NaN.
inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
// 2^n of n = bits of (1.5 * 2^23 + n), for n in -126..127.
inline Lanes power_of_two(Lanes shifted) {
  const __m512i biased = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

// Lane j + lane j + 8, then + 4, + 2, + 1.
inline float reduce(Lanes x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The rest of reduce() where a's, b's, c's and d's lanes j and j + 8 are added already: out[0] to out[3].
inline void reduce4_of_eight(Lanes ab, Lanes cd, float* out) {
  const Lanes four = add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const Lanes two = add(four, _mm512_permute_ps(four, 0x4e));
  const Lanes one = add(two, _mm512_permute_ps(two, 0xb1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one)));
}

// out[j] = reduce(x[j]).
inline void reduce4(const Lanes* x, float* out) {
  const Lanes ab = add(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
  const Lanes cd = add(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
  reduce4_of_eight(ab, cd, out);
}

inline float reduce_larger(Lanes x) { return _mm512_reduce_max_ps(x); }

inline Lanes from_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline Lanes load_f32(const void* p) { return _mm512_loadu_ps(p); }
inline Lanes load_f32_part(const void* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Lanes load_bf16(const void* p) { return from_bf16(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline Lanes load_bf16_part(const void* p, int64_t n) {
  return from_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline Lanes load_f16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline Lanes load_f16_part(const void* p, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline float f16_value(uint16_t x) { return _cvtsh_ss(x); }

// To nearest, ties to even; NaN stays NaN.
inline __m256i to_bf16(Lanes x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i chosen = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
inline void store_bf16(uint16_t* p, Lanes x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void store_bf16_part(uint16_t* p, Lanes x, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), to_bf16(x));
}

// Whether there is a NaN among bytes of E4M3, looked at 32 at a time.
struct NanSearch {
  __m256i least = _mm256_set1_epi8(0x7f);  // of the bits that keep a byte from being one
  void look_at(const uint8_t* p) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    least = _mm256_min_epu8(least, _mm256_andnot_si256(bytes, _mm256_set1_epi8(0x7f)));
  }
  bool found() const { return _mm256_testn_epi8_mask(least, least) != 0; }
};

// 16 bytes of E4M3, none of them a NaN, divided by 256: as f16 bits their exponent is 8 too small.
inline Lanes e4m3_numbers_over_256(const uint8_t* p) {
  const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(w, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80))));
}

// The same where NaNs may be.
inline Lanes e4m3_over_256(const uint8_t* p) {
  const __m256i w = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i magnitude = _mm256_and_si256(w, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(w, magnitude), 8);
  const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
  const __m256i half = _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(magnitude, 7));
  return _mm512_cvtph_ps(half);
}

// Where the two bytes around each of 16 codes of `bits` lie within their 2 * bits bytes, and the shift behind.
template <int bits>
struct CodePlaces {
  alignas(64) uint8_t bytes[64] = {};
  alignas(64) int32_t shifts[16] = {};
  constexpr CodePlaces() {
    for (int i = 0; i < 16; ++i) {
      const int first = i * bits / 8;
      shifts[i] = i * bits % 8;
      bytes[4 * i] = static_cast<uint8_t>(first);
      bytes[4 * i + 1] = static_cast<uint8_t>(first + 1 < 2 * bits ? first + 1 : 0x80);
      bytes[4 * i + 2] = bytes[4 * i + 3] = 0x80;
    }
  }
};
template <int bits>
constexpr CodePlaces<bits> kCodePlaces;

// 16 codes of a little-endian bit stream, from exactly 2 * bits bytes.
template <int bits>
inline __m512i code_words(const uint8_t* p) {
  if constexpr (bits == 8) return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m128i raw = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << (2 * bits)) - 1u), p);
  const __m512i spread = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raw), _mm512_load_si512(kCodePlaces<bits>.bytes));
  const __m512i shifted = _mm512_srlv_epi32(spread, _mm512_load_si512(kCodePlaces<bits>.shifts));
  return _mm512_and_si512(shifted, _mm512_set1_epi32((1 << bits) - 1));
}
template <int bits>
inline Lanes codes(const uint8_t* p) {
  return _mm512_cvtepi32_ps(code_words<bits>(p));
}

// 8 bytes of E2M1 nibbles, doubled.
inline Lanes e2m1_doubled(const uint8_t* p) {
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
  return _mm512_permutexvar_ps(code_words<4>(p), table);
}

}  // namespace
}  // namespace flash_moe::kernels
