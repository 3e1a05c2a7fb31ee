// Routed experts where they lie in their slots. One dispatch covers every expert whose slot is ready, and all rows that
// chose it; an item is an expert and up to matvec_x_rows of them (the product's order is matvec's).
#include "weights.h"

using namespace flash_moe;

struct ExpertRows {
  ulong x_offsets[matvec_x_rows];
  ulong y_offsets[matvec_x_rows];
};

template <uint x_count>
inline void gate_up(const device uchar* arena, const device ExpertPlace& place, Part part, ExpertRows rows, uint count,
                    const device float* x, device float* inner, uint lane) {
  const Weights gate = {arena + place.gate_data, arena + place.gate_scales, arena + place.gate_biases};
  const Weights up = {arena + place.up_data, arena + place.up_scales, arena + place.up_biases};
  float gate_sums[rows_per_simdgroup * x_count];
  float up_sums[rows_per_simdgroup * x_count];
  dot_rows<x_count>(gate_sums, gate, first_format, part, x, rows.x_offsets, lane);
  dot_rows<x_count>(up_sums, up, second_format, part, x, rows.x_offsets, lane);
  for (uint r = 0; r < rows_per_simdgroup; ++r) {
    for (uint i = 0; i < x_count; ++i) {
      const float gate_total = metal::simd_sum(gate_sums[r * x_count + i]);
      const float up_total = metal::simd_sum(up_sums[r * x_count + i]);
      if (lane != 0 || part.first_row + r >= part.row_limit || i >= count) continue;
      inner[rows.y_offsets[i] + part.first_row + r] = silu(gate_total) * up_total;
    }
  }
}

// inner [i, inner] = silu(gate x) * up x, x = row assignments[i] / k.
kernel void expert_gate_up(const device uchar* arena [[buffer(0)]], const device ExpertPlace* places [[buffer(1)]],
                           const device ExpertItem* items [[buffer(2)]], const device int* assignments [[buffer(3)]],
                           const device float* x [[buffer(4)]], device float* inner [[buffer(5)]],
                           constant ExpertArgs& args [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  const device ExpertItem& item = items[group.y];
  const Part part = {group.x * matvec_out_rows + simdgroup * rows_per_simdgroup, args.inner, args.hidden};
  ExpertRows rows;
  for (uint i = 0; i < matvec_x_rows; ++i) {
    const uint at = item.first + metal::min(i, item.count - 1);
    rows.x_offsets[i] = ulong(uint(assignments[at]) / args.per_row) * args.hidden;
    rows.y_offsets[i] = ulong(at) * args.inner;
  }
  if (item.count == 1) {
    gate_up<1>(arena, places[item.place], part, rows, 1, x, inner, lane);
  } else {
    gate_up<matvec_x_rows>(arena, places[item.place], part, rows, item.count, x, inner, lane);
  }
}

template <uint x_count>
inline void down(const device uchar* arena, const device ExpertPlace& place, Part part, ExpertRows rows, uint count,
                 const device float* inner, device float* outputs, uint lane) {
  const Weights weights = {arena + place.down_data, arena + place.down_scales, arena + place.down_biases};
  float sums[rows_per_simdgroup * x_count];
  dot_rows<x_count>(sums, weights, first_format, part, inner, rows.x_offsets, lane);
  for (uint r = 0; r < rows_per_simdgroup; ++r) {
    for (uint i = 0; i < x_count; ++i) {
      const float total = metal::simd_sum(sums[r * x_count + i]);
      if (lane != 0 || part.first_row + r >= part.row_limit || i >= count) continue;
      outputs[rows.y_offsets[i] + part.first_row + r] = total;
    }
  }
}

// outputs [assignments[i], hidden] = down inner[i].
kernel void expert_down(const device uchar* arena [[buffer(0)]], const device ExpertPlace* places [[buffer(1)]],
                        const device ExpertItem* items [[buffer(2)]], const device int* assignments [[buffer(3)]],
                        const device float* inner [[buffer(4)]], device float* outputs [[buffer(5)]],
                        constant ExpertArgs& args [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const device ExpertItem& item = items[group.y];
  const Part part = {group.x * matvec_out_rows + simdgroup * rows_per_simdgroup, args.hidden, args.inner};
  ExpertRows rows;
  for (uint i = 0; i < matvec_x_rows; ++i) {
    const uint at = item.first + metal::min(i, item.count - 1);
    rows.x_offsets[i] = ulong(at) * args.inner;
    rows.y_offsets[i] = ulong(uint(assignments[at])) * args.hidden;
  }
  if (item.count == 1) {
    down<1>(arena, places[item.place], part, rows, 1, inner, outputs, lane);
  } else {
    down<matvec_x_rows>(arena, places[item.place], part, rows, item.count, inner, outputs, lane);
  }
}
