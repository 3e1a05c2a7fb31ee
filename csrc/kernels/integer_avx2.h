#pragma once
// For the AVX2 files: fast rows and exact sums; see integer_rows.h. `natural` holds the inputs' 16-bit codes in order.
//
// Codes of 2 and 4 bits are multiplied as bytes, by hi and lo apart: four products of at most 24 * 128, or eight of 3 * 128, stay
// below 2^15, so nothing saturates. Others are multiplied as 16-bit words. Compiled with -mavxvnni, both take VNNI's
// instructions, which add the products in 32 bits.
//
// `words`: four inputs, whose 3-bit codes are twelve neighbouring bits, are a word; a half of a vector holds the words of 32
// inputs, 0 4 2 6 and then 1 5 3 7, whose codes begin within a byte.

#include "kernels/fast_row.h"
#include "kernels/fetch_ahead.h"
#include "kernels/lanes_avx2.h"

namespace flash_moe::kernels {
namespace {

constexpr int kRowsAtOnce = 4;

inline void store_unit_scales(uint8_t* row, const FastRowLayout& layout, int64_t block, float scale, const int32_t* sums16);

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_bytes(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// `n` bytes, a multiple of 4 below 32, and zeros.
inline __m256i load_first_bytes(const void* p, int64_t n) {
  const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  return _mm256_maskload_epi32(static_cast<const int*>(p), _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), places));
}

inline Lanes twice_each(Lanes x) {
  return {_mm256_permutevar8x32_ps(x.low, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
          _mm256_permutevar8x32_ps(x.low, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}

inline __m256i in_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xd8); }

// 32 bytes in order, as the 16 even ones and the 16 odd ones.
inline __m256i even_then_odd(__m256i bytes) {
  const __m256i split = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  return in_order(_mm256_shuffle_epi8(bytes, split));
}

// Dwords of both halves by turns, after a shuffle within each half.
inline __m256i shuffle_by_turns(__m256i x, __m128i within) {
  return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(within)), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// In each quarter of the result: bytes 0, 4, .. 28 of x, then 1, 5, .. 29 and so on.
inline __m256i every_fourth_byte(__m256i x) {
  return shuffle_by_turns(x, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}

// The same with words 0, 4, 8 and 12 and so on.
inline __m256i every_fourth_word(__m256i x) {
  return shuffle_by_turns(x, _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
}

// Each quarter of `a` and behind it that of `b`, 32 bytes after the quarters before.
inline void store_quarters(uint8_t* to, __m256i a, __m256i b) {
  const __m256i even = _mm256_unpacklo_epi64(a, b);
  const __m256i odd = _mm256_unpackhi_epi64(a, b);
  const auto put = [to](int i, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 32 * i), x); };
  put(0, _mm256_castsi256_si128(even));
  put(1, _mm256_castsi256_si128(odd));
  put(2, _mm256_extracti128_si256(even, 1));
  put(3, _mm256_extracti128_si256(odd, 1));
}

inline uint32_t largest_bits(const Lanes* values) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j) {
    largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(values[j].low), mask));
    largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(values[j].high), mask));
  }
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

inline void encode_block(const Lanes* values, uint8_t* row, const FastRowLayout& layout, int64_t block) {
  const uint32_t max_bits = largest_bits(values);
  float max;
  std::memcpy(&max, &max_bits, sizeof max);
  const BlockScale of = block_scale(max_bits, max);
  const __m256 inverse = _mm256_set1_ps(of.inverse);
  __m256i code[4];  // 16 words each
  int32_t sums[4];
  uint8_t* natural = row + layout.natural + static_cast<size_t>(block) * 128;
  for (int j = 0; j < 4; ++j) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(values[j].low, inverse));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(values[j].high, inverse));
    code[j] = in_order(_mm256_packs_epi32(low, high));
    store_bytes(natural + 32 * j, code[j]);
    const __m256i eight = _mm256_madd_epi16(code[j], _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    sums[j] = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  }
  uint8_t* pairs = row + layout.pairs + static_cast<size_t>(block / 2 * kPairChunkBytes + block % 2 * 32);
  __m256i all[2][2];  // hi and lo, each of 32 inputs and of 32 more
  for (int j = 0; j < 2; ++j) {
    __m256i hi[2], lo[2];
    for (int i = 0; i < 2; ++i) {
      hi[i] = _mm256_srai_epi16(_mm256_add_epi16(code[2 * j + i], _mm256_set1_epi16(128)), 8);
      lo[i] = _mm256_sub_epi16(code[2 * j + i], _mm256_slli_epi16(hi[i], 8));
    }
    all[0][j] = in_order(_mm256_packs_epi16(hi[0], hi[1]));
    all[1][j] = in_order(_mm256_packs_epi16(lo[0], lo[1]));
    const __m256i split_hi = even_then_odd(all[0][j]);
    const __m256i split_lo = even_then_odd(all[1][j]);
    const auto put = [&](int offset, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(pairs + 16 * j + offset), x); };
    put(0, _mm256_castsi256_si128(split_hi));
    put(64, _mm256_extracti128_si256(split_hi, 1));
    put(128, _mm256_castsi256_si128(split_lo));
    put(192, _mm256_extracti128_si256(split_lo, 1));
  }
  uint8_t* words = row + layout.words + static_cast<size_t>(block) * 128;
  uint8_t* fourths = row + layout.fourths + static_cast<size_t>(block / 2 * kFourthsChunkBytes + block % 2 * 16);
  for (int j = 0; j < 2; ++j) {
    store_quarters(words + 16 * j, every_fourth_word(_mm256_unpacklo_epi64(code[2 * j], code[2 * j + 1])),
                   every_fourth_word(_mm256_unpackhi_epi64(code[2 * j], code[2 * j + 1])));
    store_quarters(fourths + 128 * j, every_fourth_byte(all[j][0]), every_fourth_byte(all[j][1]));
  }
  store_unit_scales(row, layout, block, of.scale, sums);
}

// Nibble codecs turn 64 inputs into 32 even and 32 odd codes.
struct Affine4 {
  static constexpr int kBits = 4;
  static constexpr Order kOrder = Order::pairs;
  static constexpr bool kIsE2m1 = false;
  static __m256i adjust(__m256i nibbles) { return nibbles; }
};

// E2M1, doubled and offset by 12.
struct E2m1 {
  static constexpr int kBits = 4;
  static constexpr Order kOrder = Order::pairs;
  static constexpr bool kIsE2m1 = true;
  static __m256i adjust(__m256i nibbles) {
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles);
  }
};

// 16 codes as words: each in the 16 bits that start at its byte, moved to their top and then down. The first one is `skip`
// bytes behind the place that 16 bytes are loaded from.
template <int bits, int skip>
struct WordPlaces {
  alignas(32) uint8_t bytes[32] = {};
  alignas(32) uint16_t factors[16] = {};
  constexpr WordPlaces() {
    for (int i = 0; i < 16; ++i) {
      const int first = skip + i * bits / 8;
      bytes[2 * i] = static_cast<uint8_t>(first);
      bytes[2 * i + 1] = static_cast<uint8_t>(first + 1 < 16 ? first + 1 : 0x80);
      factors[i] = static_cast<uint16_t>(1 << (16 - bits - i * bits % 8));
    }
  }
};
template <int bits, int skip>
constexpr WordPlaces<bits, skip> kWordPlaces;

template <int bits>
struct AffineStream {
  static constexpr int kBits = bits;
  static constexpr Order kOrder = Order::natural;
  static constexpr bool kIsE2m1 = false;
  // The last one of a unit lies at the end of the 16 bytes that are loaded, the others at their beginning.
  template <bool last>
  static __m256i sixteen(const uint8_t* p) {
    constexpr int skip = last ? 16 - 2 * bits : 0;
    const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p - skip));
    if constexpr (bits == 8) return _mm256_cvtepu8_epi16(here);
    const auto& places = kWordPlaces<bits, skip>;
    const __m256i spread = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(here), load_bytes(places.bytes));
    return _mm256_srli_epi16(_mm256_mullo_epi16(spread, load_bytes(places.factors)), 16 - bits);
  }
};

// Of each two words: 256 times those of `hi` and those of `lo`.
inline __m256i join_words(__m256i hi, __m256i lo) {
  return _mm256_add_epi32(_mm256_madd_epi16(hi, _mm256_set1_epi16(256)), _mm256_madd_epi16(lo, _mm256_set1_epi16(1)));
}

// Sums of block begin + j of 64 inputs (`inputs` of them in the matrix), spread over eight words: words lie in the
// order of the units. `begin` is even.
template <typename Codec, int rows>
inline void pair_sums(const uint8_t* codes, const FastRow* x, int64_t begin, int64_t j, int64_t inputs, __m256i* out) {
  const uint8_t* p = codes + 32 * begin + 32 * j;
  const __m256i raw = inputs >= 64 ? load_bytes(p)
                                   : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i even = Codec::adjust(_mm256_and_si256(raw, mask));
  const __m256i odd = Codec::adjust(_mm256_and_si256(_mm256_srli_epi16(raw, 4), mask));
  for (int r = 0; r < rows; ++r) {
    const int8_t* q = x[r].inputs + kPairChunkBytes / 2 * begin + (kPairChunkBytes * (j / 2) + 32 * (j % 2));
#if defined(__AVXVNNI__)
    __m256i sum = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), even, load_bytes(q));
    sum = _mm256_slli_epi32(_mm256_dpbusd_avx_epi32(sum, odd, load_bytes(q + 64)), 8);
    sum = _mm256_dpbusd_avx_epi32(sum, even, load_bytes(q + 128));
    out[r] = _mm256_dpbusd_avx_epi32(sum, odd, load_bytes(q + 192));
#else
    const __m256i hi = _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(q)),
                                        _mm256_maddubs_epi16(odd, load_bytes(q + 64)));
    const __m256i lo = _mm256_add_epi16(_mm256_maddubs_epi16(even, load_bytes(q + 128)),
                                        _mm256_maddubs_epi16(odd, load_bytes(q + 192)));
    out[r] = join_words(hi, lo);
#endif
  }
}

// 128 codes of 2 bits.
struct Affine2 {
  static constexpr int kBits = 2;
  static constexpr Order kOrder = Order::fourths;
  static constexpr bool kIsE2m1 = false;
};

// As pair_sums, of vector `vector` of 128 inputs.
template <int rows>
inline void fourths_sums(const uint8_t* codes, const FastRow* x, int64_t vector, int64_t inputs, __m256i* out) {
  const uint8_t* p = codes + 32 * vector;
  const __m256i raw = inputs >= 128 ? load_bytes(p) : load_first_bytes(p, inputs / 4);
  const __m256i mask = _mm256_set1_epi8(3);
  const __m256i w[4] = {_mm256_and_si256(raw, mask), _mm256_and_si256(_mm256_srli_epi16(raw, 2), mask),
                        _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask), _mm256_and_si256(_mm256_srli_epi16(raw, 6), mask)};
  for (int r = 0; r < rows; ++r) {
    const int8_t* q = x[r].inputs + kFourthsChunkBytes * vector;
#if defined(__AVXVNNI__)
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) sum = _mm256_dpbusd_avx_epi32(sum, w[i], load_bytes(q + 32 * i));
    sum = _mm256_slli_epi32(sum, 8);
    for (int i = 0; i < 4; ++i) sum = _mm256_dpbusd_avx_epi32(sum, w[i], load_bytes(q + 128 + 32 * i));
    out[r] = sum;
#else
    const auto words = [&](const int8_t* at) {
      const __m256i first = _mm256_add_epi16(_mm256_maddubs_epi16(w[0], load_bytes(at)), _mm256_maddubs_epi16(w[1], load_bytes(at + 32)));
      return _mm256_add_epi16(first, _mm256_add_epi16(_mm256_maddubs_epi16(w[2], load_bytes(at + 64)),
                                                      _mm256_maddubs_epi16(w[3], load_bytes(at + 96))));
    };
    out[r] = join_words(words(q), words(q + 128));
#endif
  }
}

// 64 codes of 3 bits, as sixteen words of four.
struct Affine3 {
  static constexpr int kBits = 3;
  static constexpr Order kOrder = Order::words;
  static constexpr bool kIsE2m1 = false;
  // The words' four codes, two of them times 64: four products of those stay below 2^26.
  static void spread(const uint8_t* p, int64_t inputs, __m256i* codes) {
    const auto sixteen_bytes = [](const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
    const __m256i raw = inputs >= 64 ? _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen_bytes(p)), sixteen_bytes(p + 8), 1)
                                     : _mm256_zextsi128_si256(load_code_bytes<6>(p));
    const __m256i places = _mm256_setr_epi8(0, 1, 6, 7, 3, 4, 9, 10, 1, 2, 7, 8, 4, 5, 10, 11,  //
                                            4, 5, 10, 11, 7, 8, 13, 14, 5, 6, 11, 12, 8, 9, 14, 15);
    const __m256i words = _mm256_srlv_epi32(_mm256_shuffle_epi8(raw, places), _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4));
    const __m256i moved = _mm256_srli_epi16(words, 3);
    const __m256i low = _mm256_set1_epi16(7), high = _mm256_set1_epi16(7 << 6);
    codes[0] = _mm256_and_si256(words, low);
    codes[1] = _mm256_and_si256(moved, low);
    codes[2] = _mm256_and_si256(words, high);
    codes[3] = _mm256_and_si256(moved, high);
  }
};

// As pair_sums, of block `block` of 64 inputs.
template <int rows>
inline void word_sums(const uint8_t* codes, const FastRow* x, int64_t block, int64_t inputs, __m256i* out) {
  __m256i w[4];
  Affine3::spread(codes + 24 * block, inputs, w);
  for (int r = 0; r < rows; ++r) {
    const int8_t* q = x[r].inputs + kWordsChunkBytes / 2 * block;
    const auto sum = [&](int i) {
#if defined(__AVXVNNI__)
      return _mm256_dpwssd_avx_epi32(_mm256_dpwssd_avx_epi32(_mm256_setzero_si256(), w[i], load_bytes(q + 32 * i)), w[i + 1],
                                     load_bytes(q + 32 * i + 32));
#else
      return _mm256_add_epi32(_mm256_madd_epi16(w[i], load_bytes(q + 32 * i)), _mm256_madd_epi16(w[i + 1], load_bytes(q + 32 * i + 32)));
#endif
    };
    out[r] = _mm256_add_epi32(sum(0), _mm256_srai_epi32(sum(2), 6));
  }
}

// Sums of a unit of 16 << kind inputs over eight words.
template <typename Codec, int kind, int rows>
inline void stream_sums(const uint8_t* codes, const FastRow* x, int64_t unit, __m256i* out) {
  static_assert(kind > 0);  // two sixteens have 16 bytes, one has not
  const int64_t first = unit << kind;  // in sixteens
  for (int r = 0; r < rows; ++r) out[r] = _mm256_setzero_si256();
  const auto take = [&](int64_t i, __m256i w) {
    for (int r = 0; r < rows; ++r) {
#if defined(__AVXVNNI__)
      out[r] = _mm256_dpwssd_avx_epi32(out[r], w, load_bytes(x[r].inputs + 32 * i));
#else
      out[r] = _mm256_add_epi32(out[r], _mm256_madd_epi16(w, load_bytes(x[r].inputs + 32 * i)));
#endif
    }
  };
  const auto at = [codes](int64_t i) { return codes + 2 * Codec::kBits * i; };
  const int64_t last = first + (1 << kind) - 1;
  for (int64_t i = first; i < last; ++i) take(i, Codec::template sixteen<false>(at(i)));
  take(last, Codec::template sixteen<true>(at(last)));
}

// Eight sums, in the order of the units, from vectors of 8, 4, 2 or 1 words a unit.
template <int words>
inline __m256i gather_units(const __m256i* v) {
  if constexpr (words == 2) {
    return _mm256_permutevar8x32_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7));
  } else {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    if constexpr (words == 4) {
      return _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    } else {
      const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
      return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    }
  }
}

// Units `first` .. `first` + 7 of `rows` rows.
template <typename Codec, int kind, int rows>
inline void eight_sums(const uint8_t* codes, const FastRow* x, int64_t first, int64_t cols, __m256* out) {
  constexpr int64_t kInputs = Codec::kOrder == Order::fourths ? 128 : Codec::kOrder == Order::natural ? 16 << kind : 64;
  constexpr int kSteps = (128 << kind) / kInputs;
  constexpr int64_t kBytes = kInputs / 8 * Codec::kBits;
  const int64_t begin = first * kSteps / 8;
  __m256i v[rows][kSteps];
  const auto take = [&](int64_t j, int64_t inputs) {
    __m256i sums[rows];
    if (inputs <= 0) {
      for (__m256i& sum : sums) sum = _mm256_setzero_si256();
    } else if constexpr (Codec::kOrder == Order::fourths) {
      fourths_sums<rows>(codes, x, begin + j, inputs, sums);
    } else if constexpr (Codec::kOrder == Order::pairs) {
      pair_sums<Codec, rows>(codes, x, begin, j, inputs, sums);
    } else if constexpr (Codec::kOrder == Order::words) {
      word_sums<rows>(codes, x, begin + j, inputs, sums);
    } else {
      stream_sums<Codec, kind, rows>(codes, x, begin + j, sums);
    }
    for (int r = 0; r < rows; ++r) v[r][j] = sums[r];
  };
  if (rows == 1 && (begin + kSteps) * kInputs <= cols) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kSteps; ++j) {
      fetch_ahead(codes + begin * kBytes, j * kBytes, kBytes);
      take(j, kInputs);
    }
  } else {
    for (int64_t j = 0; j < kSteps; ++j) take(j, cols - (begin + j) * kInputs);
  }
  for (int r = 0; r < rows; ++r) out[r] = _mm256_cvtepi32_ps(gather_units<kSteps>(v[r]));
}

template <typename Codec, int kind, int rows>
inline void exact_sums(const uint8_t* codes, const FastRow* x, int64_t first, int64_t cols, Lanes* out) {
  __m256 halves[2][rows];
#pragma GCC unroll 1  // two copies of it in each product would double this file's compile time
  for (int half = 0; half < 2; ++half) eight_sums<Codec, kind, rows>(codes, x, first + 8 * half, cols, halves[half]);
  for (int r = 0; r < rows; ++r) out[r] = {halves[0][r], halves[1][r]};
}

// The eight units of two rows that have no more.
template <typename Codec, int kind>
inline Lanes sums_of_two(const uint8_t* a, const uint8_t* b, const FastRow& x, int64_t cols) {
  Lanes out;
  eight_sums<Codec, kind, 1>(a, &x, 0, cols, &out.low);
  eight_sums<Codec, kind, 1>(b, &x, 0, cols, &out.high);
  return out;
}

}  // namespace
}  // namespace flash_moe::kernels
