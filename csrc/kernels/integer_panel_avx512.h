#pragma once
// For the VNNI and AMX files: products of several rows, sixteen outputs at a time.
//
// DESIGN: a panel holds the codes of sixteen outputs by 64 inputs, four inputs ("a quad") of all sixteen in each
// 64 bytes, so that a vector of sums has an output in each word and no sum crosses words. Block by block the panel
// goes over all rows. A result's sixteen float accumulators (unit % 16, as in reference.cpp) wait in `lanes`
// meanwhile, and meet at the end. Quads of a unit are consecutive; of pair codecs first the even inputs, then the odd.
// Only filling a panel depends on the codec. It and the products of a block are functions of their own, called through
// pointers: one loop serves all codecs, and the compiler does not copy the arithmetic into each.

#include "kernels/integer_avx512.h"

namespace flash_moe::kernels {
namespace {

constexpr int64_t kPanelRows = 64;

inline const uint8_t* input_bytes(const MatmulArgs& args, int64_t r) {
  const int64_t from = args.x_rows ? args.x_rows[r] : r;
  return args.x + static_cast<size_t>(from) * args.x_stride;
}

// In place: x[i] word j becomes x[j] word i.
inline void transpose(__m512i* x) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512i p = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    const __m512i q = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    const __m512i r = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]);
    const __m512i s = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
    a[i] = _mm512_unpacklo_epi64(p, r);
    a[i + 1] = _mm512_unpackhi_epi64(p, r);
    a[i + 2] = _mm512_unpacklo_epi64(q, s);
    a[i + 3] = _mm512_unpackhi_epi64(q, s);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x44);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xee);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x44);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    x[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    x[i + 8] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
  }
}

struct Panel {
  alignas(64) uint8_t codes[16][64];
  alignas(64) float scale[16][16];  // [unit % 16][output]
  alignas(64) float bias[16][16];
  alignas(64) float lanes[16][kPanelRows][16];  // [unit % 16][row][output]
  FastRow rows[kPanelRows];
  const uint8_t* code_rows[16];  // of the outputs; beyond `outs` the last again
  const Matrix* matrix;
  MatrixScales scales;
  FastRowLayout layout;
  int64_t unit_count;
  int64_t row_count = 0;
  int64_t out = 0;
  int outs = 0;

  explicit Panel(const Matrix& m)
      : matrix(&m), scales(m), layout(fast_row_layout(m.cols)), unit_count(scales.units.count) {}

  [[gnu::noinline]] void set_rows(const MatmulArgs& args, int64_t first, Order order, int kind) {
    row_count = args.row_count - first < kPanelRows ? args.row_count - first : kPanelRows;
    for (int64_t r = 0; r < row_count; ++r) rows[r] = fast_row(input_bytes(args, first + r), layout, order, kind);
  }

  void set_outs(int64_t first, int64_t left) {
    out = first;
    outs = left < 16 ? static_cast<int>(left) : 16;
    for (int o = 0; o < 16; ++o) code_rows[o] = row_data(*matrix, out + (o < outs ? o : outs - 1));
  }

  // Scales of units `first` .. `first` + 15 of all outputs; outputs beyond `outs` repeat the last.
  [[gnu::noinline]] void set_scales(int64_t first) {
    __m512i s[16], b[16];
    for (int o = 0; o < 16; ++o) {
      const ScaleLanes of_row = scales.read(out + (o < outs ? o : outs - 1), first);
      s[o] = _mm512_castps_si512(of_row.scale);
      b[o] = _mm512_castps_si512(of_row.bias);
    }
    transpose(s);
    transpose(b);
    for (int u = 0; u < 16; ++u) {
      _mm512_store_si512(scale[u], s[u]);
      _mm512_store_si512(bias[u], b[u]);
    }
  }

  // Adds the exact sums of a unit, one word an output, to row r's lanes.
  void add(int64_t r, int64_t unit, __m512i exact, const FastRow& x) {
    const int64_t lane = unit % 16;
    float* at = lanes[lane][r];
    Lanes sum = unit < 16 ? zero() : _mm512_load_ps(at);
    const Lanes s = mul(_mm512_load_ps(scale[lane]), broadcast(x.scales[unit]));
    sum = fma(_mm512_cvtepi32_ps(exact), s, sum);
    _mm512_store_ps(at, fma(_mm512_load_ps(bias[lane]), broadcast(x.sums[unit]), sum));
  }

  [[gnu::noinline]] void finish(const MatmulArgs& args, int64_t first) const {
    for (int64_t r = 0; r < row_count; ++r) {
      Lanes sums[16];
      for (int j = 0; j < 16; ++j) sums[j] = j < unit_count ? _mm512_load_ps(lanes[j][r]) : zero();
      for (int width = 8; width > 0; width /= 2) {
        for (int j = 0; j < width; ++j) sums[j] = add_lanes(sums[j], sums[j + width]);
      }
      float* y = args.y + (first + r) * args.y_stride + out;
      if (outs == 16) {
        store(y, sums[0]);
      } else {
        store_part(y, sums[0], outs);
      }
    }
  }

 private:
  static Lanes add_lanes(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
};

using FillPanel = void (*)(Panel& panel, int64_t block);

// Four words each of sixteen outputs at byte `offset` of their rows, as four vectors of an output a word.
inline void load_quads(const uint8_t* const* rows, int64_t offset, __m512i* out) {
  __m512i r[4];
  for (int i = 0; i < 4; ++i) {
    const auto part = [&](int o) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[o] + offset)); };
    r[i] = _mm512_castsi128_si512(part(i));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00f0, part(4 + i));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0f00, part(8 + i));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xf000, part(12 + i));
  }
  const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]);
  const __m512i b = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]);
  const __m512i d = _mm512_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

// Word w of a 4-bit row holds the even inputs of quad w in its low nibbles and the odd ones in its high nibbles.
template <typename Codec, int kind>
inline void fill_from_nibbles(Panel& panel, int64_t block, int64_t inputs) {
  constexpr int kHalf = 2 << kind;  // quads of even inputs in a unit
  const __m512i mask = _mm512_set1_epi8(15);
  for (int half = 0; half < 2 && 32 * half < inputs; ++half) {
    __m512i words[4];
    load_quads(panel.code_rows, 32 * block + 16 * half, words);
    for (int i = 0; i < 4; ++i) {
      const int word = 4 * half + i;
      uint8_t* at = panel.codes[word / kHalf * 2 * kHalf + word % kHalf];
      _mm512_store_si512(at, Codec::adjust(_mm512_and_si512(words[i], mask)));
      _mm512_store_si512(at + 64 * kHalf, Codec::adjust(_mm512_and_si512(_mm512_srli_epi16(words[i], 4), mask)));
    }
  }
}

// The codes of 64 inputs in their order, from a pair codec's 128 or a natural codec's 64.
template <typename Codec>
inline void fill_from_stream(Panel& panel, int64_t block, int64_t inputs) {
  alignas(64) uint8_t codes[16][64];
  const uint8_t* starts[16];
  for (int o = 0; o < 16; ++o) {
    starts[o] = codes[o];
    _mm512_store_si512(codes[o], Codec::read(panel.code_rows[o], block, inputs));
  }
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m512i words[4];
    load_quads(starts, 16 * quarter, words);
    for (int i = 0; i < 4; ++i) _mm512_store_si512(panel.codes[4 * quarter + i], words[i]);
  }
}

// Calls fn(inputs) with how many of block `block`'s 64 inputs exist, after loading the scales where sixteen new units
// begin.
template <int kind, typename Fn>
inline void fill_block(Panel& panel, int64_t block, Fn fn) {
  constexpr int64_t kUnits = 4 >> kind;
  if (kUnits * block % 16 == 0) panel.set_scales(kUnits * block);
  const int64_t left = panel.matrix->cols - 64 * block;
  fn(left < 64 ? left : int64_t{64});
}

// Calls fn.template operator()<kind>() for the matrix's units: 16, 32 or 64 inputs for kind 0, 1 or 2.
template <typename Codec, typename Fn>
inline void with_unit_kind(const Matrix& m, Fn fn) {
  if constexpr (Codec::kIsE2m1) {
    if (m.group == 16) return fn.template operator()<0>();
    return fn.template operator()<1>();
  } else {
    if (m.group == 32) return fn.template operator()<1>();
    return fn.template operator()<2>();
  }
}

}  // namespace
}  // namespace flash_moe::kernels
