// Products of a weight matrix with many rows of x: prefill. Weights are dequantised once for 32 rows and multiplied by
// simdgroup matrices; the order of sums is the hardware's, not matvec's.
//
// DESIGN. A threadgroup computes a tile of 32 x 32 of y: four simdgroups, each two by two matrices of 8 x 8. It walks over
// the columns 32 at a time: all threads fill the tile of x and the tile of weights (zeros beyond the matrix), then all
// multiply. Results go through threadgroup memory, so that the edges of y need no care in the inner loop.
#include "weights.h"

using namespace flash_moe;

enum MatmulShape : uint {
  tile_rows = matmul_out_rows,
  tile_x_rows = matmul_x_rows,
  tile_cols = 32,
  tile_stride = 36,  // floats from a row of a tile to the next: spreads the banks
  tile_floats = 32 * tile_stride,
  run = 8            // columns that one thread fills
};

struct Thread {
  uint index;
  uint simdgroup;
};

// A thread's row and first column in a tile that it fills.
inline uint fill_row(Thread thread_) { return thread_.index / (tile_cols / run); }
inline uint fill_col(Thread thread_) { return thread_.index % (tile_cols / run) * run; }

// tile[r][c] = weight (first_row + r, first_col + c)
inline void fill_weights(threadgroup float* tile, Weights weights, uint format, uint rows, uint cols, uint first_row,
                         uint first_col, Thread thread_) {
  const uint row = first_row + fill_row(thread_);
  const uint col = first_col + fill_col(thread_);
  threadgroup float* to = tile + fill_row(thread_) * tile_stride + fill_col(thread_);
  if (is_plain(format) || row >= rows) {
    for (uint j = 0; j < run; ++j) {
      const bool inside = row < rows && col + j < cols;
      to[j] = inside ? load_element(weights.data, ulong(row) * cols + col + j, format_kind(format)) : 0.0f;
    }
    return;
  }
  // Columns come in multiples of 32: all of the run exists. Its codes are `bits` whole bytes.
  const uint bits = format_bits(format);
  const device uchar* from = weights.data + (ulong(row) * cols + col) / 8 * bits;
  ulong codes = 0;
  for (uint j = 0; j < 8; ++j) {
    if (j < bits) codes |= ulong(from[j]) << (8 * j);
  }
  if (format_kind(format) != element_affine) {
    const float scale = float_scale(weights, format, cols, row, col);
    for (uint j = 0; j < run; ++j) {
      const uint code = uint(codes >> (j * bits)) & ((1u << bits) - 1u);
      to[j] = scale * float_code_value(code, bits);
    }
    return;
  }
  const ulong scale_at = ulong(row) * (cols / format_group(format)) + col / format_group(format);
  const float scale = load_element(weights.scales, scale_at, format_scale_kind(format));
  const float bias = load_element(weights.biases, scale_at, format_scale_kind(format));
  for (uint j = 0; j < run; ++j) {
    const uint code = uint(codes >> (j * bits)) & ((1u << bits) - 1u);
    to[j] = metal::fma(float(code), scale, bias);
  }
}

// tile[r][c] = x at offset + first_col + c, for the row that this thread fills; zeros when it has none.
inline void fill_x(threadgroup float* tile, const device float* x, ulong offset, bool has_row, uint cols,
                   uint first_col, Thread thread_) {
  const uint col = first_col + fill_col(thread_);
  threadgroup float* to = tile + fill_row(thread_) * tile_stride + fill_col(thread_);
  for (uint j = 0; j < run; ++j) to[j] = has_row && col + j < cols ? x[offset + col + j] : 0.0f;
}

// A simdgroup's quarter of the tile of y: rows of x (simdgroup / 2) * 16, rows of the matrix (simdgroup % 2) * 16.
struct Quarter {
  metal::simdgroup_float8x8 sums[2][2];
};

inline void clear(thread Quarter& quarter) {
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 2; ++j) quarter.sums[i][j] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
}

inline void multiply_tiles(thread Quarter& quarter, const threadgroup float* x_tile, const threadgroup float* w_tile,
                           Thread thread_) {
  const threadgroup float* x_part = x_tile + thread_.simdgroup / 2 * 16 * tile_stride;
  const threadgroup float* w_part = w_tile + thread_.simdgroup % 2 * 16 * tile_stride;
  for (uint col = 0; col < tile_cols; col += 8) {
    metal::simdgroup_float8x8 left[2];
    metal::simdgroup_float8x8 right[2];
    for (uint i = 0; i < 2; ++i) {
      metal::simdgroup_load(left[i], x_part + i * 8 * tile_stride + col, tile_stride);
      metal::simdgroup_load(right[i], w_part + i * 8 * tile_stride + col, tile_stride, ulong2(0, 0), true);
    }
    for (uint i = 0; i < 2; ++i) {
      for (uint j = 0; j < 2; ++j) {
        metal::simdgroup_multiply_accumulate(quarter.sums[i][j], left[i], right[j], quarter.sums[i][j]);
      }
    }
  }
}

// tile [x row][matrix row]
inline void store_quarter(thread Quarter& quarter, threadgroup float* tile, Thread thread_) {
  threadgroup float* part = tile + thread_.simdgroup / 2 * 16 * tile_stride + thread_.simdgroup % 2 * 16;
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 2; ++j) {
      metal::simdgroup_store(quarter.sums[i][j], part + i * 8 * tile_stride + j * 8, tile_stride);
    }
  }
}

struct TilePlace {
  uint first_row;  // of the matrix
  uint rows;       // of the whole matrix
  uint cols;
};

// tile = the 32 x 32 of x M^T; x_tile and w_tile are scratch, and x_tile may be `tile`. Ends with a barrier.
inline void tile_product(threadgroup float* tile, threadgroup float* x_tile, threadgroup float* w_tile,
                         Weights weights, uint format, TilePlace at, const device float* x, ulong x_offset, bool has_row,
                         Thread thread_) {
  Quarter quarter;
  clear(quarter);
  for (uint col = 0; col < at.cols; col += tile_cols) {
    fill_x(x_tile, x, x_offset, has_row, at.cols, col, thread_);
    fill_weights(w_tile, weights, format, at.rows, at.cols, at.first_row, col, thread_);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    multiply_tiles(quarter, x_tile, w_tile, thread_);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
  store_quarter(quarter, tile, thread_);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
}

// y [row_count, rows] (+)= M x.   M [rows, cols], x [row_count, cols]
kernel void matmul(const device uchar* data [[buffer(0)]], const device uchar* scales [[buffer(1)]],
                   const device uchar* biases [[buffer(2)]], const device float* x [[buffer(3)]],
                   device float* y [[buffer(4)]], constant MatvecArgs& args [[buffer(5)]],
                   uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float x_tile[tile_floats];
  threadgroup float w_tile[tile_floats];
  const Thread thread_ = {index, simdgroup};
  const Weights weights = {data, scales, biases};
  const TilePlace at = {group.x * tile_rows, args.rows, args.cols};
  const uint first_x = group.y * tile_x_rows;
  const uint my_row = first_x + fill_row(thread_);
  tile_product(x_tile, x_tile, w_tile, weights, first_format, at, x, ulong(my_row) * args.x_stride,
               my_row < args.row_count, thread_);
  if (my_row >= args.row_count) return;
  device float* to = y + ulong(my_row) * args.y_stride + at.first_row;
  for (uint j = fill_col(thread_); j < fill_col(thread_) + run && at.first_row + j < args.rows; ++j) {
    const float value = x_tile[fill_row(thread_) * tile_stride + j];
    to[j] = args.add != 0 ? to[j] + value : value;
  }
}

// inner [i, inner] = silu(gate x) * up x, x = row assignments[i] / k; an item is up to 32 assignments of one expert.
kernel void expert_gate_up_tiles(const device uchar* arena [[buffer(0)]],
                                 const device ExpertPlace* places [[buffer(1)]],
                                 const device ExpertItem* items [[buffer(2)]],
                                 const device int* assignments [[buffer(3)]], const device float* x [[buffer(4)]],
                                 device float* inner [[buffer(5)]], constant ExpertArgs& args [[buffer(6)]],
                                 uint3 group [[threadgroup_position_in_grid]],
                                 uint index [[thread_index_in_threadgroup]],
                                 uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float x_tile[tile_floats];
  threadgroup float w_tile[tile_floats];
  threadgroup float gate_tile[tile_floats];
  const Thread thread_ = {index, simdgroup};
  const device ExpertItem& item = items[group.y];
  const device ExpertPlace& place = places[item.place];
  const Weights gate = {arena + place.gate_data, arena + place.gate_scales, arena + place.gate_biases};
  const Weights up = {arena + place.up_data, arena + place.up_scales, arena + place.up_biases};
  const TilePlace at = {group.x * tile_rows, args.inner, args.hidden};
  const bool has_row = fill_row(thread_) < item.count;
  const uint my_row = item.first + (has_row ? fill_row(thread_) : 0);
  const ulong x_offset = ulong(uint(assignments[my_row]) / args.per_row) * args.hidden;
  tile_product(gate_tile, x_tile, w_tile, gate, first_format, at, x, x_offset, has_row, thread_);
  tile_product(x_tile, x_tile, w_tile, up, second_format, at, x, x_offset, has_row, thread_);
  if (!has_row) return;
  device float* to = inner + ulong(my_row) * args.inner + at.first_row;
  for (uint j = fill_col(thread_); j < fill_col(thread_) + run && at.first_row + j < args.inner; ++j) {
    const uint in_tile = fill_row(thread_) * tile_stride + j;
    to[j] = silu(gate_tile[in_tile]) * x_tile[in_tile];
  }
}

// outputs [assignments[i], hidden] = down inner[i].
kernel void expert_down_tiles(const device uchar* arena [[buffer(0)]], const device ExpertPlace* places [[buffer(1)]],
                              const device ExpertItem* items [[buffer(2)]],
                              const device int* assignments [[buffer(3)]], const device float* inner [[buffer(4)]],
                              device float* outputs [[buffer(5)]], constant ExpertArgs& args [[buffer(6)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint index [[thread_index_in_threadgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float x_tile[tile_floats];
  threadgroup float w_tile[tile_floats];
  const Thread thread_ = {index, simdgroup};
  const device ExpertItem& item = items[group.y];
  const device ExpertPlace& place = places[item.place];
  const Weights down = {arena + place.down_data, arena + place.down_scales, arena + place.down_biases};
  const TilePlace at = {group.x * tile_rows, args.hidden, args.inner};
  const bool has_row = fill_row(thread_) < item.count;
  const uint my_row = item.first + (has_row ? fill_row(thread_) : 0);
  tile_product(x_tile, x_tile, w_tile, down, first_format, at, inner, ulong(my_row) * args.inner, has_row, thread_);
  if (!has_row) return;
  device float* to = outputs + ulong(uint(assignments[my_row])) * args.hidden + at.first_row;
  for (uint j = fill_col(thread_); j < fill_col(thread_) + run && at.first_row + j < args.hidden; ++j) {
    to[j] = x_tile[fill_row(thread_) * tile_stride + j];
  }
}
