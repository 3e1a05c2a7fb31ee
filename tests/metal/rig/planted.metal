// Kernels with one mistake each, and one without: tests that the rig finds them.
#include <metal_stdlib>

using namespace metal;

constant uint factor [[function_constant(0)]];

kernel void sum_right(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                      uint i [[thread_position_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float part[4];
  const float sum = simd_sum(x[i]);
  if (lane == 0) part[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) y[0] = part[0] + part[1] + part[2] + part[3];
}

kernel void missing_barrier(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                            uint i [[thread_position_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float part[4];
  const float sum = simd_sum(x[i]);
  if (lane == 0) part[simdgroup] = sum;
  if (i == 0) y[0] = part[0] + part[1] + part[2] + part[3];
}

kernel void barrier_of_nothing(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                               uint i [[thread_position_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                               uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float part[4];
  const float sum = simd_sum(x[i]);
  if (lane == 0) part[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_none);
  if (i == 0) y[0] = part[0] + part[1] + part[2] + part[3];
}

kernel void divergent_simd_sum(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                               uint i [[thread_position_in_threadgroup]]) {
  if (i < 10) y[i] = simd_sum(x[i]);
}

kernel void two_simd_sums(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                          uint i [[thread_position_in_threadgroup]]) {
  if (i % 2 == 0) {
    y[i] = simd_sum(x[i]);
  } else {
    y[i] = simd_sum(-x[i]);
  }
}

kernel void barrier_in_branch(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                              uint i [[thread_position_in_threadgroup]]) {
  if (i < 64) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = x[i];
  }
}

kernel void read_beyond(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                        uint i [[thread_position_in_threadgroup]]) {
  y[i] = x[i + 1];
}

kernel void write_beyond(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                         uint i [[thread_position_in_threadgroup]]) {
  y[i + 1] = x[i];
}

kernel void uninitialised_memory(device float* y [[buffer(1)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float sums[128];
  sums[i] += 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = sums[i];
}

kernel void threadgroups_race(device float* y [[buffer(1)]], uint group [[threadgroup_position_in_grid]],
                              uint i [[thread_position_in_threadgroup]]) {
  if (i == 0) y[0] = y[0] * 2.0f + float(group);
}

kernel void too_much_memory(device float* y [[buffer(1)]], uint i [[thread_position_in_threadgroup]]) {
  threadgroup float sums[10000];
  sums[i] = 1.0f;
  y[i] = sums[i];
}

kernel void uses_constant(device float* y [[buffer(1)]], uint i [[thread_position_in_threadgroup]]) {
  y[i] = float(factor) * float(i);
}
