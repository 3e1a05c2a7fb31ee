// GatedDeltaNet: causal convolution and the gated delta rule (docs/MODEL.md section 3).
#include "common.h"

using namespace flash_moe;

enum DeltaShape : uint { state_rows = delta_rows / (delta_threads / simd_width) };

// y = silu(causal depthwise convolution of qkv), and the window that the next step needs.
//   qkv, y      [row_count, channels]
//   window_*    [taps - 1, channels], oldest first; a channel belongs to one thread, so both may be the same memory
//   weight      [taps, channels], tap 0 is the oldest
kernel void conv_silu(const device float* qkv [[buffer(0)]], const device float* window_in [[buffer(1)]],
                      device float* window_out [[buffer(2)]], const device float* weight [[buffer(3)]],
                      device float* y [[buffer(4)]], constant ConvArgs& args [[buffer(5)]],
                      uint channel [[thread_position_in_grid]]) {
  if (channel >= args.channels) return;
  constexpr uint taps_max = 16;
  float window[taps_max];
  for (uint j = 0; j < taps_max; ++j) {
    window[j] = j + 1 < args.taps ? window_in[ulong(j) * args.channels + channel] : 0.0f;
  }
  for (uint row = 0; row < args.row_count; ++row) {
    const ulong at = ulong(row) * args.channels + channel;
    float sum = 0.0f;
    for (uint j = 0; j < taps_max; ++j) {
      if (j + 1 == args.taps) window[j] = qkv[at];
      if (j < args.taps) sum = metal::fma(window[j], weight[ulong(j) * args.channels + channel], sum);
    }
    y[at] = silu(sum);
    for (uint j = 0; j + 1 < taps_max; ++j) window[j] = window[j + 1];
  }
  for (uint j = 0; j + 1 < args.taps; ++j) window_out[ulong(j) * args.channels + channel] = window[j];
}

// The recurrence of one v head, over all rows, with the state in registers: a simdgroup holds state_rows rows of
// S [v_dim, k_dim], a lane k_dim / 32 elements of each.
//   S *= g;  delta = (v - S k) beta;  S += delta k^T;  o = S q
//   qkv           [row_count, channels], normalised by delta_qk_norm
//   a, b          [row_count, v_heads]; g = exp(-decay_rate * softplus(a + dt_bias)), beta = sigmoid(b)
//   state_in/out  [v_heads, v_dim, k_dim]; a simdgroup reads its rows before it writes them
//   out           [row_count, v_heads * v_dim]
kernel void gated_delta(const device float* qkv [[buffer(0)]], const device float* a [[buffer(1)]],
                        const device float* b [[buffer(2)]], const device float* decay_rate [[buffer(3)]],
                        const device float* dt_bias [[buffer(4)]], const device float* state_in [[buffer(5)]],
                        device float* state_out [[buffer(6)]], device float* out [[buffer(7)]],
                        constant DeltaArgs& args [[buffer(8)]], uint3 group [[threadgroup_position_in_grid]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const uint head = group.y;
  const uint first = group.x * delta_rows + simdgroup * state_rows;
  const uint k_head = head / (args.v_heads / args.k_heads);
  float state[state_rows][elements_per_lane];
  for (uint r = 0; r < state_rows; ++r) {
    const ulong from = (ulong(head) * args.v_dim + metal::min(first + r, args.v_dim - 1)) * delta_k_dim;
    for (uint j = 0; j < elements_per_lane; ++j) {
      const uint i = lane + j * simd_width;
      state[r][j] = i < delta_k_dim ? state_in[from + i] : 0.0f;
    }
  }
  for (uint row = 0; row < args.row_count; ++row) {
    const device float* x = qkv + ulong(row) * args.channels;
    const device float* v = x + 2 * args.k_heads * delta_k_dim + head * args.v_dim;
    const ulong scalar = ulong(row) * args.v_heads + head;
    const float decay = metal::precise::exp(-decay_rate[head] * softplus(a[scalar] + dt_bias[head]));
    const float beta = sigmoid(b[scalar]);
    float q[elements_per_lane];
    float k[elements_per_lane];
    for (uint j = 0; j < elements_per_lane; ++j) {
      const uint i = lane + j * simd_width;
      q[j] = i < delta_k_dim ? x[k_head * delta_k_dim + i] : 0.0f;
      k[j] = i < delta_k_dim ? x[(args.k_heads + k_head) * delta_k_dim + i] : 0.0f;
    }
    for (uint r = 0; r < state_rows; ++r) {
      float remembered = 0.0f;
      for (uint j = 0; j < elements_per_lane; ++j) {
        state[r][j] *= decay;
        remembered = metal::fma(state[r][j], k[j], remembered);
      }
      const float delta = (v[metal::min(first + r, args.v_dim - 1)] - metal::simd_sum(remembered)) * beta;
      float output = 0.0f;
      for (uint j = 0; j < elements_per_lane; ++j) {
        state[r][j] = metal::fma(delta, k[j], state[r][j]);
        output = metal::fma(state[r][j], q[j], output);
      }
      const float total = metal::simd_sum(output);
      if (lane == 0 && first + r < args.v_dim) out[scalar * args.v_dim + first + r] = total;
    }
  }
  for (uint r = 0; r < state_rows; ++r) {
    if (first + r >= args.v_dim) continue;
    const ulong to = (ulong(head) * args.v_dim + first + r) * delta_k_dim;
    for (uint j = 0; j < elements_per_lane; ++j) {
      const uint i = lane + j * simd_width;
      if (i < delta_k_dim) state_out[to + i] = state[r][j];
    }
  }
}
