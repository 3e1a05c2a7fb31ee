// The integer products with VPDPBUSD: unsigned codes of the matrix by signed bytes of the row, four to a sum.
//
// One row: sixteen units at a time. Each vector of codes holds 1, 2, 4 or 8 units; their sums meet in one vector
// of sixteen, which takes its scales at once. Several rows: see panel_product.

#include "kernels/integer_panel_avx512.h"
#include "kernels/tables.h"

namespace flash_moe::kernels {
namespace {

// ---- One row ---------------------------------------------------------------------------------------------

// The sums of one vector of codes, spread over its words: units lie in order, 16 / units words each.
template <typename Codec>
inline __m512i product(const uint8_t* codes, const FastRow& x, int64_t at, int64_t inputs) {
  if constexpr (Codec::kOrder == Order::fourths) {
    const FourCodes w = Codec::read(codes, at, inputs);
    const int8_t* p = x.inputs + 2 * kFourthsChunkBytes * at;
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) sum = _mm512_dpbusd_epi32(sum, w.from[i], load_bytes(p + 64 * i));
    sum = _mm512_slli_epi32(sum, 8);
    for (int i = 0; i < 4; ++i) sum = _mm512_dpbusd_epi32(sum, w.from[i], load_bytes(p + 256 + 64 * i));
    return sum;
  } else if constexpr (Codec::kOrder == Order::pairs) {
    const PairCodes w = Codec::read(codes, at, inputs);
    const int8_t* p = x.inputs + kPairChunkBytes * at;
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.even, load_bytes(p));
    sum = _mm512_slli_epi32(_mm512_dpbusd_epi32(sum, w.odd, load_bytes(p + 64)), 8);
    sum = _mm512_dpbusd_epi32(sum, w.even, load_bytes(p + 128));
    return _mm512_dpbusd_epi32(sum, w.odd, load_bytes(p + 192));
  } else {
    const __m512i w = Codec::read(codes, at, inputs);
    const int8_t* p = x.inputs + kNaturalChunkBytes / 2 * at;
    const __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, load_bytes(p));
    return _mm512_dpbusd_epi32(_mm512_slli_epi32(high, 8), w, load_bytes(p + 64));
  }
}

// From 16 / units vectors that hold `units` units each to one sum a word, in the order of the units.
template <int units>
inline __m512i gather_units(const __m512i* v) {
  if constexpr (units == 8) {
    const __m512 a = _mm512_castsi512_ps(v[0]);
    const __m512 b = _mm512_castsi512_ps(v[1]);
    const __m512i sums = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                                          _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    return _mm512_permutexvar_epi32(order, sums);
  } else if constexpr (units == 4) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, sum_words(v[0], v[1], v[2], v[3]));
  } else if constexpr (units == 2) {
    const __m512i a = sum_words(v[0], v[1], v[2], v[3]);
    const __m512i b = sum_words(v[4], v[5], v[6], v[7]);
    const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_epi32(order, sums);
  } else {
    __m512i z[4];
    for (int j = 0; j < 4; ++j) z[j] = sum_words(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]);
    const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(z[0], z[1], 0x44), _mm512_shuffle_i32x4(z[0], z[1], 0xee));
    const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(z[2], z[3], 0x44), _mm512_shuffle_i32x4(z[2], z[3], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
}

template <typename Codec, int kind>
struct RowProduct {
  // Of a vector of codes.
  static constexpr int kInputs = Codec::kOrder == Order::fourths ? 256 : Codec::kOrder == Order::pairs ? 128 : 64;
  static constexpr int kUnits = kInputs >> (4 + kind);
  static constexpr int kVectors = 16 / kUnits;
  static constexpr int64_t kBytes = kVectors * Codec::kVectorBytes;  // of the codes of sixteen units

  const MatmulArgs& args;
  const MatrixScales scales{args.matrix};
  const FastRow x = fast_row(input_bytes(args, 0), fast_row_layout(args.matrix.cols), Codec::kOrder, kind);

  Lanes add_units(__m512i exact, const ScaleLanes& w, Lanes x_scales, Lanes x_sums, Lanes sum) const {
    return fma(w.bias, x_sums, fma(_mm512_cvtepi32_ps(exact), mul(w.scale, x_scales), sum));
  }

  // Of vector j after unit `first`.
  __m512i next_product(int64_t out, int64_t first, int j) const {
    const uint8_t* codes = row_data(args.matrix, out);
    fetch_ahead(codes + first / 16 * kBytes, j * Codec::kVectorBytes, Codec::kVectorBytes);
    return product<Codec>(codes, x, first / kUnits + j, kInputs);
  }

  // The row's units by sixteens, as many as are whole.
  Lanes whole(int64_t out) const {
    Lanes sum = zero();
    for (int64_t first = 0; first + 16 <= scales.units.count; first += 16) {
      __m512i v[kVectors];
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) v[j] = next_product(out, first, j);
      sum = add_units(gather_units<kUnits>(v), scales.read(out, first), load(x.scales + first), load(x.sums + first), sum);
    }
    return sum;
  }

  // The units after those of whole().
  Lanes tail(int64_t out, Lanes sum) const {
    const int64_t first = scales.units.count / 16 * 16;
    if (first == scales.units.count) return sum;
    __m512i v[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      const int64_t left = args.matrix.cols - (first / kUnits + j) * kInputs;
      v[j] = left <= 0 ? _mm512_setzero_si512()
                       : product<Codec>(row_data(args.matrix, out), x, first / kUnits + j, left < kInputs ? left : kInputs);
    }
    return add_units(gather_units<kUnits>(v), scales.read(out, first), load(x.scales + first), load(x.sums + first), sum);
  }

  // The same for two rows that have eight units left: they share the lanes.
  void tails_of_two(int64_t out, Lanes* sums) const {
    const int64_t first = scales.units.count / 16 * 16;
    __m512i v[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors / 2; ++j) {
      v[j] = next_product(out, first, j);
      v[kVectors / 2 + j] = next_product(out + 1, first, j);
    }
    const ScaleLanes a = scales.read(out, first);
    const ScaleLanes b = scales.read(out + 1, first);
    const Lanes x_scales = load(x.scales + first);
    const Lanes x_sums = load(x.sums + first);
    const Lanes both = add_units(gather_units<kUnits>(v), {low_halves(a.scale, b.scale), low_halves(a.bias, b.bias)},
                                 low_halves(x_scales, x_scales), low_halves(x_sums, x_sums), low_halves(sums[0], sums[1]));
    // What tail() adds to the lanes without units is 0, which makes -0 to 0.
    sums[0] = _mm512_shuffle_f32x4(both, add(sums[0], zero()), 0xe4);
    sums[1] = _mm512_shuffle_f32x4(both, add(sums[1], zero()), 0xee);
  }

  // Rows of eight units, the experts' last matrix: two rows are sixteen neighbouring units, and their sums share the lanes
  // from the first product to the last sum.
  void four_short(int64_t out, Lanes x_scales, Lanes x_sums, float* y) const {
    Lanes pairs[2];
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t row = out + 2 * i;
      __m512i v[kVectors];
#pragma GCC unroll 8
      for (int j = 0; j < kVectors / 2; ++j) {
        v[j] = next_product(row, 0, j);
        v[kVectors / 2 + j] = next_product(row + 1, 0, j);
      }
      const ScaleLanes w = scales.read_units(row * scales.row_groups, 16);
      // The lanes that a row of its own leaves empty are 0, which makes -0 to 0.
      pairs[i] = add(add_units(gather_units<kUnits>(v), w, x_scales, x_sums, zero()), zero());
    }
    reduce4_of_eight(pairs[0], pairs[1], y);
  }

  static Lanes low_halves(Lanes a, Lanes b) { return _mm512_shuffle_f32x4(a, b, 0x44); }
};

template <typename Codec, int kind>
void one_row(const MatmulArgs& args) {
  const RowProduct<Codec, kind> of{args};
  const bool by_two = of.scales.units.count % 16 == 8;
  int64_t out = args.out_begin;
  if (of.scales.units.count == 8) {
    const Lanes x_scales = of.low_halves(load(of.x.scales), load(of.x.scales));
    const Lanes x_sums = of.low_halves(load(of.x.sums), load(of.x.sums));
    for (; out + 4 <= args.out_end; out += 4) {
      fetch_scales_ahead(args.matrix, out);
      of.four_short(out, x_scales, x_sums, args.y + out);
    }
  }
  for (; out + 4 <= args.out_end; out += 4) {
    fetch_scales_ahead(args.matrix, out);
    Lanes sums[4];
    for (int j = 0; j < 4; ++j) sums[j] = of.whole(out + j);
    if (by_two) {
      for (int j = 0; j < 4; j += 2) of.tails_of_two(out + j, sums + j);
    } else {
      for (int j = 0; j < 4; ++j) sums[j] = of.tail(out + j, sums[j]);
    }
    reduce4(sums, args.y + out);
  }
  for (; out < args.out_end; ++out) args.y[out] = reduce(of.tail(out, of.whole(out)));
}

// ---- Several rows ----------------------------------------------------------------------------------------

// Where quad q of unit j of a block lies among the hi bytes of a row's inputs, and how far behind it its lo bytes are.
template <bool pairs, int kind>
struct QuadPlaces {
  static constexpr int kQuads = 4 << kind;  // of a unit
  static constexpr int kToLow = pairs ? 128 : 64;

  static int64_t block(int64_t index) { return pairs ? kPairChunkBytes * (index / 2) + 32 * (index % 2) : 128 * index; }
  static constexpr int quad(int j, int q) {
    constexpr int kHalf = kQuads / 2;  // of pair codecs: first the even inputs, then the odd
    if (!pairs) return 4 * (kQuads * j + q);
    return 4 * kHalf * j + (q < kHalf ? 4 * q : 64 + 4 * (q - kHalf));
  }
};

inline __m512i four_bytes_everywhere(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}

// Block `block` of 64 inputs for rows r .. r + rows - 1 of the panel: each vector of codes meets all of them.
template <bool pairs, int kind, int rows>
inline void multiply_rows(Panel& panel, int64_t block, int64_t r) {
  using Places = QuadPlaces<pairs, kind>;
  constexpr int kUnits = 4 >> kind;
  const int64_t first = kUnits * block;
  const int64_t begin = Places::block(block);  // not in `x`: GCC would add it to eight pointers as a vector, and wait for their stores
  const int8_t* x[rows];
  for (int i = 0; i < rows; ++i) x[i] = panel.rows[r + i].inputs;
  for (int j = 0; j < kUnits && first + j < panel.unit_count; ++j) {
    __m512i high[rows], low[rows];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) high[i] = low[i] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int q = 0; q < Places::kQuads; ++q) {
      const __m512i w = _mm512_load_si512(panel.codes[Places::kQuads * j + q]);
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) {
        const int8_t* at = x[i] + begin + Places::quad(j, q);
        high[i] = _mm512_dpbusd_epi32(high[i], w, four_bytes_everywhere(at));
        low[i] = _mm512_dpbusd_epi32(low[i], w, four_bytes_everywhere(at + Places::kToLow));
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      panel.add(r + i, first + j, _mm512_add_epi32(_mm512_slli_epi32(high[i], 8), low[i]), panel.rows[r + i]);
    }
  }
}

template <typename Codec, int kind>
void fill_panel(Panel& panel, int64_t block) {
  fill_block<kind>(panel, block, [&](int64_t inputs) {
    if constexpr (Codec::kOrder == Order::pairs) {
      fill_from_nibbles<Codec, kind>(panel, block, inputs);
    } else {
      fill_from_stream<Codec>(panel, block, inputs);
    }
  });
}

template <bool pairs, int kind>
void multiply_block(Panel& panel, int64_t block) {
  constexpr int kRowsAtOnce = 8;
  int64_t r = 0;
  for (; r + kRowsAtOnce <= panel.row_count; r += kRowsAtOnce) multiply_rows<pairs, kind, kRowsAtOnce>(panel, block, r);
  for (; r + 2 <= panel.row_count; r += 2) multiply_rows<pairs, kind, 2>(panel, block, r);
  if (r < panel.row_count) multiply_rows<pairs, kind, 1>(panel, block, r);
}

void panel_product(const MatmulArgs& args, Order order, int kind, FillPanel fill, void (*multiply)(Panel&, int64_t)) {
  Panel panel(args.matrix);
  for (int64_t first = 0; first < args.row_count; first += kPanelRows) {
    panel.set_rows(args, first, order, kind);
    for (int64_t out = args.out_begin; out < args.out_end; out += 16) {
      panel.set_outs(out, args.out_end - out);
      const int64_t blocks = (args.matrix.cols + 63) / 64;
      for (int64_t block = 0; block < blocks; ++block) {
        fill(panel, block);
        multiply(panel, block);
      }
      panel.finish(args, first);
    }
  }
}

void matmul(const MatmulArgs& args) {
  if (!has_integer_codes(args.matrix)) return kAvx512Float32.matmul(args);
  with_codec(args.matrix, [&]<typename Codec>() {
    with_unit_kind<Codec>(args.matrix, [&]<int kind>() {
      if (args.row_count == 1) {
        one_row<Codec, kind>(args);
      } else if (args.row_count > 1) {
        using Filled = typename Codec::Panel;
        constexpr bool kPairs = Filled::kOrder == Order::pairs;
        panel_product(args, Filled::kOrder, kind, fill_panel<Filled, kind>, multiply_block<kPairs, kind>);
      }
    });
  });
}

}  // namespace

constinit const IntegerKernels kAvx512VnniInteger = {
    .name = "avx512vnni", .prepared_bytes = fast_row_bytes, .prepare_row = prepare_fast_row, .matmul = matmul};

}  // namespace flash_moe::kernels
