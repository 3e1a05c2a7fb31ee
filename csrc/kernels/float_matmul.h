#pragma once
// For ISA files: the product with f32 rows, in the order of reference.cpp. One accumulator register set per
// result holds the sixteen lanes; input i goes to lane i % 16.
//
// One row reads the matrix straight from memory. More rows go through a panel: kTileOuts matrix rows by
// kPanelCols inputs are decoded to f32 once, then multiplied with every row; the lanes of kPanelRows rows wait
// in `lanes` between panels.

#include "kernels/stored_formats.h"

namespace flash_moe::kernels {
namespace {

constexpr int64_t kPanelCols = 512;
constexpr int64_t kPanelRows = 60;  // a multiple of every kTileRows
constexpr int kDirectOuts = 4;

inline const float* input_row(const MatmulArgs& args, int64_t r) {
  const int64_t from = args.x_rows ? args.x_rows[r] : r;
  return reinterpret_cast<const float*>(args.x + static_cast<size_t>(from) * args.x_stride);
}

// Reads inputs [begin, end) of `outs` rows and calls fn(i, lanes of every row).
template <int outs, typename Reader, typename Fn>
inline void read_rows(Reader* readers, int64_t begin, int64_t end, Fn fn) {
  constexpr int64_t kBlock = Reader::kBlock;
  Lanes w[outs];
  int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) {
    if constexpr (outs > 1) {
      const int64_t row_bytes = readers[1].data - readers[0].data;
      fetch_side_by_side(readers[0].data, row_bytes, outs, i / kBlock * Reader::kBlockBytes, Reader::kBlockBytes);
    }
    for (int o = 0; o < outs; ++o) readers[o].enter(i);
    if constexpr (requires(NanSearch search) { readers[0].look_for_nan(search, i); }) {
      NanSearch search;
      for (int o = 0; o < outs; ++o) readers[o].look_for_nan(search, i);
      if (!search.found()) {
        for (int64_t j = i; j < i + kBlock; j += 16) {
          for (int o = 0; o < outs; ++o) w[o] = readers[o].read_numbers(j);
          fn(j, w);
        }
        continue;
      }
    }
    for (int64_t j = i; j < i + kBlock; j += 16) {
      for (int o = 0; o < outs; ++o) w[o] = readers[o].read(j);
      fn(j, w);
    }
  }
  if constexpr (requires { readers[0].read_part(i, i); }) {
    for (; i + 16 <= end; i += 16) {
      for (int o = 0; o < outs; ++o) w[o] = readers[o].read(i);
      fn(i, w);
    }
    if (i < end) {
      for (int o = 0; o < outs; ++o) w[o] = readers[o].read_part(i, end - i);
      fn(i, w);
    }
  }
}

template <typename Reader, int outs>
inline void direct_product(const MatmulArgs& args, int64_t out, float* y) {
  const Matrix& m = args.matrix;
  const float* x = input_row(args, 0);
  static_assert(outs == 1 || outs == 4);
  if constexpr (outs == 1) {
    Reader readers[1] = {{m, out}};
    Lanes sum = zero();
    read_rows<1>(readers, 0, m.cols, [&](int64_t i, const Lanes* w) { sum = fma(load(x + i), w[0], sum); });
    *y = reduce(sum);
  } else {
    Reader readers[4] = {{m, out}, {m, out + 1}, {m, out + 2}, {m, out + 3}};
    Lanes sums[4] = {zero(), zero(), zero(), zero()};
    read_rows<4>(readers, 0, m.cols, [&](int64_t i, const Lanes* w) {
      const Lanes xi = load(x + i);
      for (int o = 0; o < 4; ++o) sums[o] = fma(xi, w[o], sums[o]);
    });
    reduce4(sums, y);
  }
}

template <typename Reader>
inline void one_row_product(const MatmulArgs& args) {
  int64_t out = args.out_begin;
  for (; out + kDirectOuts <= args.out_end; out += kDirectOuts) direct_product<Reader, 4>(args, out, args.y + out);
  for (; out < args.out_end; ++out) direct_product<Reader, 1>(args, out, args.y + out);
}

struct Panel {
  alignas(64) float weights[kTileOuts][kPanelCols];
  alignas(64) float lanes[kPanelRows][kTileOuts][16];
  const float* rows[kPanelRows];
  int64_t row_count;
  int64_t cols;  // of this panel, rounded up to 16
};

template <typename Reader>
inline void fill_panel(Panel& panel, const Matrix& m, int64_t out, int outs, int64_t begin) {
  const int64_t end = begin + kPanelCols < m.cols ? begin + kPanelCols : m.cols;
  panel.cols = (end - begin + 15) / 16 * 16;
  for (int o = 0; o < outs; ++o) {
    Reader reader(m, out + o);
    float* to = panel.weights[o];
    read_rows<1>(&reader, begin, end, [&](int64_t i, const Lanes* w) { store(to + (i - begin), w[0]); });
  }
}

// Adds inputs [begin, begin + panel.cols) to the lanes of `rows` rows from `first` on.
template <int rows>
inline void multiply_panel(Panel& panel, int64_t first, int64_t begin) {
  Lanes sums[rows][kTileOuts];
  const float* x[rows];
  for (int r = 0; r < rows; ++r) {
    x[r] = panel.rows[first + r] + begin;
    for (int o = 0; o < kTileOuts; ++o) sums[r][o] = load(panel.lanes[first + r][o]);
  }
  for (int64_t i = 0; i < panel.cols; i += 16) {
    Lanes w[kTileOuts];
    for (int o = 0; o < kTileOuts; ++o) w[o] = load(panel.weights[o] + i);
    for (int r = 0; r < rows; ++r) {
      const Lanes xi = load(x[r] + i);
      for (int o = 0; o < kTileOuts; ++o) sums[r][o] = fma(xi, w[o], sums[r][o]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < kTileOuts; ++o) store(panel.lanes[first + r][o], sums[r][o]);
  }
}

template <typename Reader>
void panel_product(const MatmulArgs& args, Panel& panel, int64_t out, int outs, int64_t first_row) {
  for (int64_t r = 0; r < panel.row_count; ++r) {
    for (int o = 0; o < kTileOuts; ++o) store(panel.lanes[r][o], zero());
  }
  for (int64_t begin = 0; begin < args.matrix.cols; begin += kPanelCols) {
    fill_panel<Reader>(panel, args.matrix, out, outs, begin);
    int64_t r = 0;
    for (; r + kTileRows <= panel.row_count; r += kTileRows) multiply_panel<kTileRows>(panel, r, begin);
    for (; r < panel.row_count; ++r) multiply_panel<1>(panel, r, begin);
  }
  for (int64_t r = 0; r < panel.row_count; ++r) {
    float* y = args.y + (first_row + r) * args.y_stride + out;
    for (int o = 0; o < outs; ++o) y[o] = reduce(load(panel.lanes[r][o]));
  }
}

template <typename Reader>
void many_rows_product(const MatmulArgs& args) {
  Panel panel;
  // A panel of fewer rows than kTileOuts multiplies what is left in it: numbers, and never stored.
  for (auto& row : panel.weights) {
    for (int64_t i = 0; i < kPanelCols; i += 16) store(row + i, zero());
  }
  for (int64_t first = 0; first < args.row_count; first += kPanelRows) {
    panel.row_count = args.row_count - first < kPanelRows ? args.row_count - first : kPanelRows;
    for (int64_t r = 0; r < panel.row_count; ++r) panel.rows[r] = input_row(args, first + r);
    for (int64_t out = args.out_begin; out < args.out_end; out += kTileOuts) {
      const int64_t left = args.out_end - out;
      panel_product<Reader>(args, panel, out, left < kTileOuts ? static_cast<int>(left) : kTileOuts, first);
    }
  }
}

inline void float_matmul(const MatmulArgs& args) {
  with_reader(args.matrix, [&]<typename Reader>() {
    if (args.row_count == 1) {
      one_row_product<Reader>(args);
    } else if (args.row_count > 1) {
      many_rows_product<Reader>(args);
    }
  });
}

inline void dequantise_row(float* y, const Matrix& m, int64_t row) {
  with_reader(m, [&]<typename Reader>() {
    Reader reader(m, row);
    read_rows<1>(&reader, 0, m.cols, [&](int64_t i, const Lanes* w) {
      if (m.cols - i < 16) {
        store_part(y + i, w[0], m.cols - i);
      } else {
        store(y + i, w[0]);
      }
    });
  });
}

inline size_t float_row_bytes(int64_t cols) { return (static_cast<size_t>(cols) * 4 + 63) / 64 * 64; }

// The f32 part of a prepared row: the values, then zeros up to a multiple of 16.
inline void copy_float_row(const float* x, int64_t cols, uint8_t* dst) {
  auto* to = reinterpret_cast<float*>(dst);
  int64_t i = 0;
  for (; i + 16 <= cols; i += 16) store(to + i, load(x + i));
  if (i < cols) store(to + i, load_part(x + i, cols - i));
}

}  // namespace
}  // namespace flash_moe::kernels
