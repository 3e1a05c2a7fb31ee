// Normalisations and element-wise functions of rows and heads.
#include "common.h"

using namespace flash_moe;

// The sum of `value` over the threadgroup, in every thread. `partial` [simdgroups]; all threads call it.
inline float threadgroup_sum(float value, threadgroup float* partial, uint simdgroup, uint simdgroups, uint lane) {
  const float total = metal::simd_sum(value);
  if (lane == 0) partial[simdgroup] = total;
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  float sum = 0.0f;
  for (uint i = 0; i < simdgroups; ++i) sum += partial[i];
  return sum;
}

// y[i] = x * rsqrt(mean(x^2) + eps) * weight, x = row i or rows[i].   x [.., n], y [row_count, n], weight [n]
kernel void rms_norm(const device float* x [[buffer(0)]], const device float* weight [[buffer(1)]],
                     device float* y [[buffer(2)]], const device int* rows [[buffer(3)]],
                     constant NormArgs& args [[buffer(4)]], uint row [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float partial[32];
  const device float* from = x + ulong(args.use_rows != 0 ? uint(rows[row]) : row) * args.n;
  device float* to = y + ulong(row) * args.n;
  float squares = 0.0f;
  for (uint i = thread_index; i < args.n; i += threads) squares = metal::fma(from[i], from[i], squares);
  const float sum = threadgroup_sum(squares, partial, simdgroup, threads / simd_width, lane);
  const float scale = 1.0f / metal::precise::sqrt(sum / float(args.n) + args.eps);
  for (uint i = thread_index; i < args.n; i += threads) to[i] = from[i] * scale * weight[i];
}

// y = silu(gate) * up.   [count]
kernel void silu_mul(const device float* gate [[buffer(0)]], const device float* up [[buffer(1)]],
                     device float* y [[buffer(2)]], constant ElementArgs& args [[buffer(3)]],
                     uint i [[thread_position_in_grid]]) {
  if (i < args.count) y[i] = silu(gate[i]) * up[i];
}

// q and k heads of convolved qkv to unit length (x * rsqrt(sum(x^2) + eps)), q times k_dim^-0.5, in place.
//   qkv  [row_count, channels]: all q heads, all k heads, all v heads
kernel void delta_qk_norm(device float* qkv [[buffer(0)]], constant DeltaArgs& args [[buffer(1)]],
                          uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  device float* head = qkv + ulong(group.y) * args.channels + group.x * args.k_dim;
  float squares = 0.0f;
  for (uint i = lane; i < args.k_dim; i += simd_width) squares = metal::fma(head[i], head[i], squares);
  const float factor = 1.0f / metal::precise::sqrt(metal::simd_sum(squares) + args.eps);
  const float scale = group.x < args.k_heads ? 1.0f / metal::precise::sqrt(float(args.k_dim)) : 1.0f;
  for (uint i = lane; i < args.k_dim; i += simd_width) head[i] = head[i] * factor * scale;
}

// y = rms_norm(o) * weight * silu(z), a head.   o, z, y [row_count, v_heads, v_dim], weight [v_dim]
kernel void gated_norm(const device float* o [[buffer(0)]], const device float* z [[buffer(1)]],
                       const device float* weight [[buffer(2)]], device float* y [[buffer(3)]],
                       constant DeltaArgs& args [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]]) {
  const ulong first = (ulong(group.y) * args.v_heads + group.x) * args.v_dim;
  float squares = 0.0f;
  for (uint i = lane; i < args.v_dim; i += simd_width) squares = metal::fma(o[first + i], o[first + i], squares);
  const float scale = 1.0f / metal::precise::sqrt(metal::simd_sum(squares) / float(args.v_dim) + args.eps);
  for (uint i = lane; i < args.v_dim; i += simd_width) {
    y[first + i] = silu(z[first + i]) * (o[first + i] * scale * weight[i]);
  }
}
