#pragma once
// Sixteen f32 lanes as two AVX2 registers; the contracts are those of lanes_avx512.h.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace flash_moe::kernels {
namespace {

struct Lanes {
  __m256 low, high;
};

constexpr int kTileOuts = 2;
constexpr int kTileRows = 2;
constexpr int kAttentionHeads = 2;
constexpr int kAttentionVectors = 2;

inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
// For results that are not read again soon; p is 64-byte aligned. Other threads may read after end_stores_past_caches.
inline void store_past_caches(float* p, Lanes x) {
  _mm256_stream_ps(p, x.low);
  _mm256_stream_ps(p + 8, x.high);
}
inline void end_stores_past_caches() { _mm_sfence(); }
inline Lanes load_part(const float* p, int64_t n) {
  alignas(32) float buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
  return load(buffer);
}
inline void store_part(float* p, Lanes x, int64_t n) {
  alignas(32) float buffer[16];
  store(buffer, x);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(float));
}

inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline __m256 power_of_two(__m256 shifted) {
  const __m256i biased = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Lanes power_of_two(Lanes shifted) { return {power_of_two(shifted.low), power_of_two(shifted.high)}; }

inline float reduce(Lanes x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Lanes low_twice(Lanes x) { return {x.low, x.low}; }

// The rest of reduce() where a's, b's, c's and d's lanes j and j + 8 are added already: out[0] to out[3].
inline void reduce4_of_eight(Lanes a_b, Lanes c_d, float* out) {
  const __m256 eight[4] = {a_b.low, a_b.high, c_d.low, c_d.high};
  __m128 four[4];
  for (int j = 0; j < 4; ++j) four[j] = _mm_add_ps(_mm256_castps256_ps128(eight[j]), _mm256_extractf128_ps(eight[j], 1));
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(four[0], four[1]), _mm_movehl_ps(four[1], four[0]));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(four[2], four[3]), _mm_movehl_ps(four[3], four[2]));
  _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
}

inline void reduce4(const Lanes* x, float* out) {
  const auto eight = [x](int j) { return _mm256_add_ps(x[j].low, x[j].high); };
  reduce4_of_eight({eight(0), eight(1)}, {eight(2), eight(3)}, out);
}

inline float reduce_larger(Lanes x) {
  alignas(32) float values[16];
  store(values, x);
  float largest = values[0];
  for (int j = 1; j < 16; ++j) largest = values[j] > largest ? values[j] : largest;
  return largest;
}

inline __m256 from_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline Lanes load_f32(const void* p) { return load(static_cast<const float*>(p)); }
inline Lanes load_f32_part(const void* p, int64_t n) {
  alignas(32) float buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
  return load(buffer);
}
inline Lanes load_bf16(const void* p) {
  const auto* q = static_cast<const __m128i*>(p);
  return {from_bf16(_mm_loadu_si128(q)), from_bf16(_mm_loadu_si128(q + 1))};
}
inline Lanes load_bf16_part(const void* p, int64_t n) {
  alignas(32) uint16_t buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return load_bf16(buffer);
}
inline Lanes load_f16(const void* p) {
  const auto* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline Lanes load_f16_part(const void* p, int64_t n) {
  alignas(32) uint16_t buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return load_f16(buffer);
}
inline float f16_value(uint16_t x) { return _cvtsh_ss(x); }

inline __m256i bf16_words(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
inline void store_bf16(uint16_t* p, Lanes x) {
  const __m256i packed = _mm256_packus_epi32(bf16_words(x.low), bf16_words(x.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void store_bf16_part(uint16_t* p, Lanes x, int64_t n) {
  alignas(32) uint16_t buffer[16];
  store_bf16(buffer, x);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(uint16_t));
}

// 16 powers of two by their exponents' codes; 255 is NaN.
inline Lanes e8m0_lanes(const uint8_t* p) {
  const auto eight = [](const uint8_t* codes) {
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m256i least = _mm256_and_si256(_mm256_cmpeq_epi32(code, _mm256_setzero_si256()), _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi32(code, _mm256_set1_epi32(255)), _mm256_set1_epi32(0x7fc00000));
    return _mm256_castsi256_ps(_mm256_or_si256(_mm256_or_si256(_mm256_slli_epi32(code, 23), least), nan));
  };
  return {eight(p), eight(p + 8)};
}

struct NanSearch {
  __m256i least = _mm256_set1_epi8(0x7f);  // of the bits that keep a byte from being one
  void look_at(const uint8_t* p) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    least = _mm256_min_epu8(least, _mm256_andnot_si256(bytes, _mm256_set1_epi8(0x7f)));
  }
  bool found() const { return _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, _mm256_setzero_si256())) != 0; }
};

inline Lanes e4m3_numbers_over_256(const uint8_t* p) {
  const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(w, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}

inline Lanes e4m3_over_256(const uint8_t* p) {
  const __m256i w = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i magnitude = _mm256_and_si256(w, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(w, magnitude), 8);
  const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
  const __m256i half = _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(magnitude, 7));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}

// Exactly 2 * bits bytes, at the bottom of a register.
template <int bits>
inline __m128i load_code_bytes(const uint8_t* p) {
  constexpr int bytes = 2 * bits;
  if constexpr (bytes == 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if constexpr (bytes == 4) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm_cvtsi32_si128(word);
  }
  if constexpr (bytes == 6) {
    uint32_t low;
    uint16_t high;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + 4, 2);
    return _mm_cvtsi64_si128(static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low));
  }
  uint64_t low;
  std::memcpy(&low, p, 8);
  uint32_t high = 0;
  if constexpr (bytes > 8) std::memcpy(&high, p + 8, bytes - 8);
  return _mm_set_epi64x(high, static_cast<int64_t>(low));
}

template <int bits>
struct CodePlaces {
  alignas(32) uint8_t bytes[64] = {};
  alignas(32) int32_t shifts[16] = {};
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

struct Words {
  __m256i low, high;
};

template <int bits>
inline Words code_words(const uint8_t* p) {
  const __m256i raw = _mm256_broadcastsi128_si256(load_code_bytes<bits>(p));
  const auto* bytes = reinterpret_cast<const __m256i*>(kCodePlaces<bits>.bytes);
  const auto* shifts = reinterpret_cast<const __m256i*>(kCodePlaces<bits>.shifts);
  const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
  const auto half = [&](int j) {
    const __m256i spread = _mm256_shuffle_epi8(raw, _mm256_load_si256(bytes + j));
    return _mm256_and_si256(_mm256_srlv_epi32(spread, _mm256_load_si256(shifts + j)), mask);
  };
  return {half(0), half(1)};
}
template <int bits>
inline Lanes codes(const uint8_t* p) {
  const Words words = code_words<bits>(p);
  return {_mm256_cvtepi32_ps(words.low), _mm256_cvtepi32_ps(words.high)};
}

inline Lanes e2m1_doubled(const uint8_t* p) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
  const Words words = code_words<4>(p);
  const auto value = [&](__m256i w) {
    const __m256i found = _mm256_shuffle_epi8(table, w);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(found, 24), 24));
  };
  return {value(words.low), value(words.high)};
}

}  // namespace
}  // namespace flash_moe::kernels
