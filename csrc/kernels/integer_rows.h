#pragma once
// For the AVX2 and NEON files, after their lanes header and integer header: the integer products in the order of
// reference.cpp. The ISA's integer header gives
//   encode_block      fills a row's pairs, natural and unit scales for 64 inputs
//   exact_sums        the sums of sixteen units for up to kRowsAtOnce rows, as floats; asks for codes ahead
//   sums_of_two       the same of two stored rows of eight units, side by side, for one row
//   twice_each        lanes 0 0 1 1 .. 7 7

#include <cstring>

#include "kernels/fast_row.h"
#include "kernels/stored_formats.h"
#include "kernels/tables.h"

namespace flash_moe::kernels {
namespace {

inline void store_unit_scales(uint8_t* row, const FastRowLayout& layout, int64_t block, float scale, const int32_t* sums16) {
  const auto put = [&](size_t at, int64_t index, float value) { reinterpret_cast<float*>(row + at)[index] = value; };
  for (int64_t kind = 0; kind < kUnitKinds; ++kind) {
    const int64_t units = 4 >> kind;
    for (int64_t j = 0; j < units; ++j) {
      int32_t sum = 0;
      for (int64_t i = j << kind; i < (j + 1) << kind; ++i) sum += sums16[i];
      put(layout.scales[kind], units * block + j, scale);
      put(layout.sums[kind], units * block + j, static_cast<float>(sum) * scale);
    }
  }
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
    Lanes values[4];
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t here = left - 16 * j;
      const float* from = x + 64 * block + 16 * j;
      values[j] = here >= 16 ? load(from) : here > 0 ? load_part(from, here) : zero();
    }
    encode_block(values, dst, layout, block);
  }
}

struct ScaleLanes {
  Lanes scale, bias;
};

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

  static Lanes load_scales(const uint8_t* p, int64_t n, Dtype dtype) {
    if (dtype == Dtype::f32) return n == 16 ? load_f32(p) : load_f32_part(p, n);
    if (dtype == Dtype::f16) return n == 16 ? load_f16(p) : load_f16_part(p, n);
    return n == 16 ? load_bf16(p) : load_bf16_part(p, n);
  }

  // Of units `first` .. `first` + 15 of a row, finite beyond the last; `first` is a multiple of 16.
  ScaleLanes read(int64_t row, int64_t first) const {
    const int64_t left = units.count - first;
    return read_units(row * row_groups + (first >> units.group_shift), left < 16 ? left : 16);
  }

  // Of `n` units from the first of group `at` on, counted over all rows.
  ScaleLanes read_units(int64_t at, int64_t n) const {
    if (format == MatrixFormat::affine) {
      const int64_t groups = n >> units.group_shift;
      const int64_t offset = at * scale_bytes(dtype);
      const Lanes scale = load_scales(scales + offset, groups, dtype);
      const Lanes bias = load_scales(biases + offset, groups, dtype);
      return units.group_shift == 0 ? ScaleLanes{scale, bias} : ScaleLanes{twice_each(scale), twice_each(bias)};
    }
    uint8_t part[16] = {};  // beyond the last unit inputs are 0
    if (n < 16) std::memcpy(part, scales + at, static_cast<size_t>(n));
    const uint8_t* const codes = n < 16 ? part : scales + at;
    if (format == MatrixFormat::mxfp4) {
      const Lanes scale = e8m0_lanes(codes);
      return {mul(scale, broadcast(0.5f)), mul(scale, broadcast(-6.0f))};
    }
    const Lanes scale = e4m3_over_256(codes);
    return {mul(scale, broadcast(128.0f)), mul(scale, broadcast(-1536.0f))};
  }
};

// Results of one output for `rows` rows from `first_row` on.
template <typename Codec, int kind, int rows>
inline void integer_product(const MatmulArgs& args, const MatrixScales& scales, const FastRow* x, int64_t out, float* y) {
  const Matrix& m = args.matrix;
  const uint8_t* codes = row_data(m, out);
  Lanes sums[rows];
  for (Lanes& sum : sums) sum = zero();
  for (int64_t first = 0; first < scales.units.count; first += 16) {
    const ScaleLanes w = scales.read(out, first);
    Lanes exact[rows];
    exact_sums<Codec, kind, rows>(codes, x, first, m.cols, exact);
    for (int r = 0; r < rows; ++r) {
      sums[r] = fma(exact[r], mul(w.scale, load(x[r].scales + first)), sums[r]);
      sums[r] = fma(w.bias, load(x[r].sums + first), sums[r]);
    }
  }
  for (int r = 0; r < rows; ++r) y[r * args.y_stride] = reduce(sums[r]);
}

// Outputs out .. out + 3 of one row by stored rows of eight units: two of those are sixteen neighbouring units.
template <typename Codec, int kind>
inline void four_short_products(const Matrix& m, const MatrixScales& scales, const FastRow& x, int64_t out, float* y) {
  const Lanes x_scales = low_twice(load(x.scales));
  const Lanes x_sums = low_twice(load(x.sums));
  Lanes pairs[2];
#pragma GCC unroll 1  // for the compiler's time
  for (int i = 0; i < 2; ++i) {
    const int64_t row = out + 2 * i;
    const ScaleLanes w = scales.read_units(row * scales.row_groups, 16);
    const Lanes exact = sums_of_two<Codec, kind>(row_data(m, row), row_data(m, row + 1), x, m.cols);
    const Lanes sums = fma(w.bias, x_sums, fma(exact, mul(w.scale, x_scales), zero()));
    pairs[i] = add(sums, zero());  // the lanes that a row of its own leaves empty are 0, which makes -0 to 0
  }
  reduce4_of_eight(pairs[0], pairs[1], y);
}

template <typename Codec, int kind>
void integer_products(const MatmulArgs& args) {
  const MatrixScales scales(args.matrix);
  const FastRowLayout layout = fast_row_layout(args.matrix.cols);
  for (int64_t first = 0; first < args.row_count; first += kRowsAtOnce) {
    const int64_t count = args.row_count - first < kRowsAtOnce ? args.row_count - first : kRowsAtOnce;
    FastRow x[kRowsAtOnce];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t from = args.x_rows ? args.x_rows[first + r] : first + r;
      x[r] = fast_row(args.x + static_cast<size_t>(from) * args.x_stride, layout, Codec::kOrder, kind);
    }
    int64_t out = args.out_begin;
    for (; count == 1 && scales.units.count == 8 && out + 4 <= args.out_end; out += 4) {
      fetch_scales_ahead(args.matrix, out);
      four_short_products<Codec, kind>(args.matrix, scales, x[0], out, args.y + first * args.y_stride + out);
    }
    for (; out < args.out_end; ++out) {
      if (out % 4 == 0) fetch_scales_ahead(args.matrix, out);
      float* y = args.y + first * args.y_stride + out;
      if (count == kRowsAtOnce) {
        integer_product<Codec, kind, kRowsAtOnce>(args, scales, x, out, y);
      } else {
        for (int64_t r = 0; r < count; ++r) {
          integer_product<Codec, kind, 1>(args, scales, x + r, out, y + r * args.y_stride);
        }
      }
    }
  }
}

template <typename Codec>
inline void integer_products_of(const MatmulArgs& args) {
  if constexpr (Codec::kIsE2m1) {
    if (args.matrix.group == 16) return integer_products<Codec, 0>(args);
    return integer_products<Codec, 1>(args);
  } else {
    if (args.matrix.group == 32) return integer_products<Codec, 1>(args);
    return integer_products<Codec, 2>(args);
  }
}

inline void integer_matmul(const MatmulArgs& args) {
  if (args.matrix.format != MatrixFormat::affine) return integer_products_of<E2m1>(args);
  switch (args.matrix.bits) {
    case 2:
      return integer_products_of<Affine2>(args);
    case 3:
      return integer_products_of<Affine3>(args);
    case 4:
      return integer_products_of<Affine4>(args);
    case 5:
      return integer_products_of<AffineStream<5>>(args);
    case 6:
      return integer_products_of<AffineStream<6>>(args);
    default:
      return integer_products_of<AffineStream<8>>(args);
  }
}

template <void (*floats)(const MatmulArgs&)>
void integer_or_float_matmul(const MatmulArgs& args) {
  if (has_integer_codes(args.matrix)) {
    integer_matmul(args);
  } else {
    floats(args);
  }
}

// The table of an ISA; `floats` multiplies by matrices without integer codes.
template <void (*floats)(const MatmulArgs&)>
constexpr IntegerKernels integer_table(const char* name) {
  return {.name = name, .prepared_bytes = fast_row_bytes, .prepare_row = prepare_fast_row,
          .matmul = integer_or_float_matmul<floats>};
}

}  // namespace
}  // namespace flash_moe::kernels
