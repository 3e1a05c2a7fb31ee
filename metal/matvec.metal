// Products of a weight matrix with one row of x, or a few: decode. Bound by reading the weights.
#include "weights.h"

using namespace flash_moe;

// y[i][row] (+)= total of each sum of the part.
template <uint x_count>
inline void store_rows(thread float* sums, Part part, device float* y, uint y_stride, uint first_x, uint x_limit,
                       bool add, uint lane) {
  for (uint r = 0; r < rows_per_simdgroup; ++r) {
    for (uint i = 0; i < x_count; ++i) {
      const float total = metal::simd_sum(sums[r * x_count + i]);
      const uint row = part.first_row + r;
      if (lane != 0 || row >= part.row_limit || first_x + i >= x_limit) continue;
      device float* to = y + ulong(first_x + i) * y_stride + row;
      *to = add ? *to + total : total;
    }
  }
}

template <uint x_count>
inline void x_offsets(thread ulong* offsets, uint first_x, uint x_limit, uint stride) {
  for (uint i = 0; i < x_count; ++i) offsets[i] = ulong(metal::min(first_x + i, x_limit - 1)) * stride;
}

template <uint x_count>
inline void multiply(Weights weights, Part part, const device float* x, device float* y, constant MatvecArgs& args,
                     uint first_x, uint lane) {
  float sums[rows_per_simdgroup * x_count];
  ulong offsets[x_count];
  x_offsets<x_count>(offsets, first_x, args.row_count, args.x_stride);
  dot_rows<x_count>(sums, weights, first_format, part, x, offsets, lane);
  store_rows<x_count>(sums, part, y, args.y_stride, first_x, args.row_count, args.add != 0, lane);
}

// y [row_count, rows] (+)= M x.   M [rows, cols], x [row_count, cols]
kernel void matvec(const device uchar* data [[buffer(0)]], const device uchar* scales [[buffer(1)]],
                   const device uchar* biases [[buffer(2)]], const device float* x [[buffer(3)]],
                   device float* y [[buffer(4)]], constant MatvecArgs& args [[buffer(5)]],
                   uint3 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
  const Weights weights = {data, scales, biases};
  const Part part = {group.x * matvec_out_rows + simdgroup * rows_per_simdgroup, args.rows, args.cols};
  const uint first_x = group.y * matvec_x_rows;
  if (first_x + 1 == args.row_count) {
    multiply<1>(weights, part, x, y, args, first_x, lane);
  } else {
    multiply<matvec_x_rows>(weights, part, x, y, args, first_x, lane);
  }
}

template <uint x_count>
inline void gated_multiply(Weights gate, Weights up, Part part, const device float* x, device float* y,
                           constant MatvecArgs& args, uint first_x, uint lane) {
  float gate_sums[rows_per_simdgroup * x_count];
  float up_sums[rows_per_simdgroup * x_count];
  ulong offsets[x_count];
  x_offsets<x_count>(offsets, first_x, args.row_count, args.x_stride);
  dot_rows<x_count>(gate_sums, gate, first_format, part, x, offsets, lane);
  dot_rows<x_count>(up_sums, up, second_format, part, x, offsets, lane);
  for (uint r = 0; r < rows_per_simdgroup; ++r) {
    for (uint i = 0; i < x_count; ++i) {
      const float gate_total = metal::simd_sum(gate_sums[r * x_count + i]);
      const float up_total = metal::simd_sum(up_sums[r * x_count + i]);
      const uint row = part.first_row + r;
      if (lane != 0 || row >= part.row_limit || first_x + i >= args.row_count) continue;
      y[ulong(first_x + i) * args.y_stride + row] = silu(gate_total) * up_total;
    }
  }
}

// y [row_count, rows] = silu(gate x) * up x.   gate, up [rows, cols]
kernel void gated_matvec(const device uchar* gate_data [[buffer(0)]], const device uchar* gate_scales [[buffer(1)]],
                         const device uchar* gate_biases [[buffer(2)]], const device uchar* up_data [[buffer(3)]],
                         const device uchar* up_scales [[buffer(4)]], const device uchar* up_biases [[buffer(5)]],
                         const device float* x [[buffer(6)]], device float* y [[buffer(7)]],
                         constant MatvecArgs& args [[buffer(8)]], uint3 group [[threadgroup_position_in_grid]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const Weights gate = {gate_data, gate_scales, gate_biases};
  const Weights up = {up_data, up_scales, up_biases};
  const Part part = {group.x * matvec_out_rows + simdgroup * rows_per_simdgroup, args.rows, args.cols};
  const uint first_x = group.y * matvec_x_rows;
  if (first_x + 1 == args.row_count) {
    gated_multiply<1>(gate, up, part, x, y, args, first_x, lane);
  } else {
    gated_multiply<matvec_x_rows>(gate, up, part, x, y, args, first_x, lane);
  }
}
