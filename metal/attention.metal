// Full attention: norms and rotation of q and k, the cache, and softmax(q k / sqrt(d)) v of any length.
//
// DESIGN. attention_decode cuts the positions into splits of attention_split, the same for every row and every step, and
// a simdgroup of a split takes every eighth position; attention_merge joins the splits in order. So a row's result does not
// depend on which rows are computed with it. attention_prefill (prefill.metal) is the fast way for many rows, in another
// order of sums.
#include "common.h"

using namespace flash_moe;

// Row r of q (in place) and of k (into the cache): rms_norm a head, then rotation of pairs (x[i], x[i + rotary_dim / 2]).
//   q       [row_count, heads, q_head]; only the first head_dim of a head are touched
//   angles  [row_count, rotary_dim]: cos, then sin
//   keys, values  [positions, kv_heads, head_dim] bf16 or f32
struct RopeRow {
  uint head_dim;
  uint rotary_dim;
  float eps;
};

inline float norm_scale(const device float* head, RopeRow row, uint lane) {
  float squares = 0.0f;
  for (uint i = lane; i < row.head_dim; i += simd_width) squares = metal::fma(head[i], head[i], squares);
  return 1.0f / metal::precise::sqrt(metal::simd_sum(squares) / float(row.head_dim) + row.eps);
}

// Element i of the normalised and rotated head.
inline float rotated(const device float* head, const device float* weight, const device float* angles, RopeRow row,
                     float scale, uint i) {
  const float x = head[i] * scale * weight[i];
  if (i >= row.rotary_dim) return x;
  const uint pairs = row.rotary_dim / 2;
  const uint other = i < pairs ? i + pairs : i - pairs;
  const float y = head[other] * scale * weight[other];
  const float cosine = angles[i % pairs];
  const float sine = angles[pairs + i % pairs];
  return i < pairs ? metal::fma(x, cosine, -(y * sine)) : metal::fma(x, cosine, y * sine);
}

inline void store_kv(device uchar* cache, ulong index, float x) {
  if (kv_is_bf16) {
    ((device ushort*)cache)[index] = f32_to_bf16(x);
  } else {
    ((device float*)cache)[index] = x;
  }
}

inline float load_kv(const device uchar* cache, ulong index) {
  return kv_is_bf16 ? bf16_to_f32(((const device ushort*)cache)[index]) : ((const device float*)cache)[index];
}

kernel void qk_norm_rope_append(device float* q [[buffer(0)]], const device float* k [[buffer(1)]],
                                const device float* v [[buffer(2)]], const device float* q_norm [[buffer(3)]],
                                const device float* k_norm [[buffer(4)]], const device float* angles [[buffer(5)]],
                                device uchar* keys [[buffer(6)]], device uchar* values [[buffer(7)]],
                                constant RopeArgs& args [[buffer(8)]], uint3 group [[threadgroup_position_in_grid]],
                                uint lane [[thread_index_in_simdgroup]]) {
  const uint row = group.y;
  const RopeRow shape = {args.head_dim, args.rotary_dim, args.eps};
  const device float* row_angles = angles + ulong(row) * args.rotary_dim;
  if (group.x < args.heads) {
    device float* head = q + ulong(row) * args.q_stride + group.x * args.q_head;
    const float scale = norm_scale(head, shape, lane);
    float turned[elements_per_lane];
    for (uint j = 0; j < elements_per_lane; ++j) {
      const uint i = lane + j * simd_width;
      turned[j] = i < args.head_dim ? rotated(head, q_norm, row_angles, shape, scale, i) : 0.0f;
    }
    // Both elements of a pair are read before either is written.
    metal::simdgroup_barrier(metal::mem_flags::mem_device);
    for (uint j = 0; j < elements_per_lane; ++j) {
      const uint i = lane + j * simd_width;
      if (i < args.head_dim) head[i] = turned[j];
    }
    return;
  }
  const uint kv = group.x - args.heads;
  const uint kv_head = kv % args.kv_heads;
  const ulong from = ulong(row) * args.kv_stride + kv_head * args.head_dim;
  const ulong to = (ulong(args.position) + row) * args.kv_stride + kv_head * args.head_dim;
  if (kv < args.kv_heads) {
    const float scale = norm_scale(k + from, shape, lane);
    for (uint i = lane; i < args.head_dim; i += simd_width) {
      store_kv(keys, to + i, rotated(k + from, k_norm, row_angles, shape, scale, i));
    }
  } else {
    for (uint i = lane; i < args.head_dim; i += simd_width) store_kv(values, to + i, v[from + i]);
  }
}

// What a simdgroup, a split or a whole row has seen: the largest score, the sum of exp(score - maximum), and the
// lane's elements of the weighted sum of values. Nothing seen: maximum -infinity, sum 0.
struct Seen {
  float maximum;
  float sum;
  float value[elements_per_lane];
};

// exp(a - b) that is 0 for a = -infinity, also where b is -infinity too.
inline float shrink(float a, float b) { return a == -INFINITY ? 0.0f : metal::precise::exp(a - b); }

inline void see(thread Seen& seen, float score, const device uchar* values, ulong at, uint lane) {
  const float maximum = metal::max(seen.maximum, score);
  const float keep = shrink(seen.maximum, maximum);
  const float weight = metal::precise::exp(score - maximum);
  seen.maximum = maximum;
  seen.sum = metal::fma(seen.sum, keep, weight);
  for (uint j = 0; j < elements_per_lane; ++j) {
    const uint i = lane + j * simd_width;
    if (i < attention_head_dim) seen.value[j] = metal::fma(weight, load_kv(values, at + i), seen.value[j] * keep);
  }
}

inline Seen nothing_seen() {
  Seen seen;
  seen.maximum = -INFINITY;
  seen.sum = 0.0f;
  for (uint j = 0; j < elements_per_lane; ++j) seen.value[j] = 0.0f;
  return seen;
}

// One split of one head of one row. partials [row, head, split, head_dim], stats [row, head, split, 2]
kernel void attention_decode(const device float* q [[buffer(0)]], const device uchar* keys [[buffer(1)]],
                             const device uchar* values [[buffer(2)]], device float* partials [[buffer(3)]],
                             device float* stats [[buffer(4)]], constant AttentionArgs& args [[buffer(5)]],
                             uint3 group [[threadgroup_position_in_grid]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint simdgroups = attention_threads / simd_width;
  threadgroup float shared_values[simdgroups * 256];
  threadgroup float shared_maximum[simdgroups];
  threadgroup float shared_sum[simdgroups];
  const uint head = group.x;
  const uint row = group.z;
  const ulong kv_head = head / (args.heads / args.kv_heads);
  const uint begin = group.y * attention_split;
  const uint end = metal::min(begin + attention_split, args.position + row + 1);
  const device float* query = q + ulong(row) * args.q_stride + head * args.q_head;
  float mine[elements_per_lane];
  for (uint j = 0; j < elements_per_lane; ++j) {
    const uint i = lane + j * simd_width;
    mine[j] = i < attention_head_dim ? query[i] : 0.0f;
  }
  Seen seen = nothing_seen();
  for (uint p = begin + simdgroup; p < end; p += simdgroups) {
    const ulong at = ulong(p) * args.kv_stride + kv_head * attention_head_dim;
    float product = 0.0f;
    for (uint j = 0; j < elements_per_lane; ++j) {
      const uint i = lane + j * simd_width;
      if (i < attention_head_dim) product = metal::fma(mine[j], load_kv(keys, at + i), product);
    }
    see(seen, metal::simd_sum(product) * args.scale, values, at, lane);
  }
  if (lane == 0) {
    shared_maximum[simdgroup] = seen.maximum;
    shared_sum[simdgroup] = seen.sum;
  }
  for (uint j = 0; j < elements_per_lane; ++j) shared_values[simdgroup * 256 + lane + j * simd_width] = seen.value[j];
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  float maximum = -INFINITY;
  for (uint s = 0; s < simdgroups; ++s) maximum = metal::max(maximum, shared_maximum[s]);
  const ulong out = (ulong(row) * args.heads + head) * args.split_count + group.y;
  for (uint i = simdgroup * simd_width + lane; i < attention_head_dim; i += attention_threads) {
    float value = 0.0f;
    for (uint s = 0; s < simdgroups; ++s) {
      value = metal::fma(shrink(shared_maximum[s], maximum), shared_values[s * 256 + i], value);
    }
    partials[out * attention_head_dim + i] = value;
  }
  if (simdgroup == 0 && lane == 0) {
    float sum = 0.0f;
    for (uint s = 0; s < simdgroups; ++s) sum = metal::fma(shrink(shared_maximum[s], maximum), shared_sum[s], sum);
    stats[2 * out] = maximum;
    stats[2 * out + 1] = sum;
  }
}

// out [row_count, heads * head_dim] = the splits' values over their sums, times sigmoid(gate).
kernel void attention_merge(const device float* q [[buffer(0)]], const device float* partials [[buffer(1)]],
                            const device float* stats [[buffer(2)]], device float* out [[buffer(3)]],
                            constant AttentionArgs& args [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]]) {
  const uint head = group.x;
  const uint row = group.y;
  const ulong first = (ulong(row) * args.heads + head) * args.split_count;
  float maximum = -INFINITY;
  for (uint s = 0; s < args.split_count; ++s) maximum = metal::max(maximum, stats[2 * (first + s)]);
  float sum = 0.0f;
  for (uint s = 0; s < args.split_count; ++s) {
    sum = metal::fma(shrink(stats[2 * (first + s)], maximum), stats[2 * (first + s) + 1], sum);
  }
  const device float* gate = q + ulong(row) * args.q_stride + head * args.q_head + attention_head_dim;
  device float* to = out + (ulong(row) * args.heads + head) * attention_head_dim;
  for (uint i = lane; i < attention_head_dim; i += simd_width) {
    float value = 0.0f;
    for (uint s = 0; s < args.split_count; ++s) {
      const ulong at = (first + s) * attention_head_dim + i;
      value = metal::fma(shrink(stats[2 * (first + s)], maximum), partials[at], value);
    }
    value /= sum;
    to[i] = attention_has_gate ? value * sigmoid(gate[i]) : value;
  }
}
