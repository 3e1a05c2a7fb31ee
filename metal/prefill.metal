// Attention of many rows at once: softmax(q k / sqrt(d)) v with simdgroup matrices and an online softmax.
//
// DESIGN. A threadgroup takes one head and 32 query rows, a simdgroup eight of them. It walks over the positions 32 at a
// time. Scores: q and k in slices of 32 dimensions through threadgroup memory, S = q k^T in four matrices a simdgroup.
// Softmax: S lies in threadgroup memory, a lane owns a quarter of a row. Values: O = diag(keep) O + P v, the factor that a
// moved maximum takes from earlier sums being a diagonal matrix, so that no lane needs to know which elements it holds.
#include "common.h"

using namespace flash_moe;

enum PrefillShape : uint {
  block = 32,       // positions a pass, dimensions a slice, query rows a threadgroup
  block_stride = 36,
  own_rows = 8,     // query rows of a simdgroup
  slices_max = 256 / block
};

inline float load_cached(const device uchar* cache, ulong index) {
  return kv_is_bf16 ? bf16_to_f32(((const device ushort*)cache)[index]) : ((const device float*)cache)[index];
}

// tile[p][d] = cache[first + p][slice * 32 + d]; zeros beyond `length` and head_dim.
inline void fill_cached(threadgroup float* tile, const device uchar* cache, constant AttentionArgs& args, ulong kv_head,
                        uint first, uint length, uint slice, uint index) {
  for (uint i = index; i < block * block; i += prefill_threads) {
    const uint p = first + i / block;
    const uint d = slice * block + i % block;
    const bool inside = p < length && d < attention_head_dim;
    tile[i / block * block_stride + i % block] =
        inside ? load_cached(cache, ulong(p) * args.kv_stride + kv_head * attention_head_dim + d) : 0.0f;
  }
}

inline void fill_queries(threadgroup float* tile, const device float* q, constant AttentionArgs& args, uint head,
                         uint first_row, uint slice, uint index) {
  for (uint i = index; i < block * block; i += prefill_threads) {
    const uint row = first_row + i / block;
    const uint d = slice * block + i % block;
    const bool inside = row < args.row_count && d < attention_head_dim;
    tile[i / block * block_stride + i % block] = inside ? q[ulong(row) * args.q_stride + head * args.q_head + d] : 0.0f;
  }
}

// What a lane keeps of its query row (lane / 4): the row's largest score so far, and its sum of weights.
struct RowState {
  float maximum;
  float sum;
};

// Maximum or sum over the four lanes of a row.
inline float row_max(float x) {
  x = metal::max(x, metal::simd_shuffle_xor(x, ushort(1)));
  return metal::max(x, metal::simd_shuffle_xor(x, ushort(2)));
}
inline float row_sum(float x) {
  x += metal::simd_shuffle_xor(x, ushort(1));
  return x + metal::simd_shuffle_xor(x, ushort(2));
}

// Turns the simdgroup's 8 x 32 scores into weights, in place; returns what earlier sums of the row are worth now.
// `visible`: positions from `first` on that the row may see.
inline float weigh(threadgroup float* scores, thread RowState& state, uint visible, float scale, uint lane) {
  threadgroup float* mine = scores + lane / 4 * block_stride + lane % 4 * 8;
  const uint first = lane % 4 * 8;
  float largest = -INFINITY;
  for (uint j = 0; j < 8; ++j) {
    mine[j] = first + j < visible ? mine[j] * scale : -INFINITY;
    largest = metal::max(largest, mine[j]);
  }
  const float maximum = metal::max(state.maximum, row_max(largest));
  const float keep = state.maximum == -INFINITY ? 0.0f : metal::precise::exp(state.maximum - maximum);
  float sum = 0.0f;
  for (uint j = 0; j < 8; ++j) {
    mine[j] = mine[j] == -INFINITY ? 0.0f : metal::precise::exp(mine[j] - maximum);
    sum += mine[j];
  }
  state.sum = state.sum * keep + row_sum(sum);
  state.maximum = maximum;
  return keep;
}

// The simdgroup's sums of weighted values: eight rows, slices of 32 dimensions.
struct Totals {
  metal::simdgroup_float8x8 of[slices_max][block / 8];
};

// Divides by the rows' sums of weights, applies the gate and writes the rows that exist. scratch: 8 x block_stride.
inline void write_out(const thread Totals& totals, threadgroup float* scratch, const device float* q,
                      device float* out, constant AttentionArgs& args, uint head, uint my_row, float sum, uint lane) {
  const uint slices = (attention_head_dim + block - 1) / block;
  const ulong gate = ulong(my_row) * args.q_stride + head * args.q_head + attention_head_dim;
  const ulong to = (ulong(my_row) * args.heads + head) * attention_head_dim;
  for (uint s = 0; s < slices; ++s) {
    for (uint j = 0; j < block / 8; ++j) metal::simdgroup_store(totals.of[s][j], scratch + j * 8, block_stride);
    metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
    for (uint j = 0; j < 8; ++j) {
      const uint d = s * block + lane % 4 * 8 + j;
      if (my_row >= args.row_count || d >= attention_head_dim) continue;
      const float value = scratch[lane / 4 * block_stride + lane % 4 * 8 + j] / sum;
      out[to + d] = attention_has_gate ? value * sigmoid(q[gate + d]) : value;
    }
    metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
}

// out [row_count, heads * head_dim] = softmax(q k / sqrt(d)) v, times sigmoid(gate).
kernel void attention_prefill(const device float* q [[buffer(0)]], const device uchar* keys [[buffer(1)]],
                              const device uchar* values [[buffer(2)]], device float* out [[buffer(3)]],
                              constant AttentionArgs& args [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                              uint index [[thread_index_in_threadgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float left[block * block_stride];    // queries; then, a simdgroup's part each, the factors `keep`
  threadgroup float right[block * block_stride];   // keys, then values
  threadgroup float scores[block * block_stride];
  const uint head = group.x;
  const ulong kv_head = head / (args.heads / args.kv_heads);
  const uint first_row = group.y * prefill_rows;
  const uint slices = (attention_head_dim + block - 1) / block;
  const uint my_row = first_row + simdgroup * own_rows + lane / 4;
  const uint length = args.position + metal::min(first_row + prefill_rows, args.row_count);
  threadgroup float* own_scores = scores + simdgroup * own_rows * block_stride;
  threadgroup float* own_left = left + simdgroup * own_rows * block_stride;
  Totals totals;
  for (uint s = 0; s < slices_max; ++s) {
    for (uint j = 0; j < block / 8; ++j) totals.of[s][j] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  RowState state = {-INFINITY, 0.0f};
  for (uint first = 0; first < length; first += block) {
    metal::simdgroup_float8x8 product[block / 8];
    for (uint j = 0; j < block / 8; ++j) product[j] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint s = 0; s < slices; ++s) {
      fill_queries(left, q, args, head, first_row, s, index);
      fill_cached(right, keys, args, kv_head, first, length, s, index);
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      for (uint d = 0; d < block; d += 8) {
        metal::simdgroup_float8x8 query;
        metal::simdgroup_load(query, own_left + d, block_stride);
        for (uint j = 0; j < block / 8; ++j) {
          metal::simdgroup_float8x8 key;
          metal::simdgroup_load(key, right + j * 8 * block_stride + d, block_stride, ulong2(0, 0), true);
          metal::simdgroup_multiply_accumulate(product[j], query, key, product[j]);
        }
      }
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    }
    for (uint j = 0; j < block / 8; ++j) metal::simdgroup_store(product[j], own_scores + j * 8, block_stride);
    metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
    const uint seen = args.position + my_row + 1;  // positions that the lane's row may see
    const float keep = weigh(own_scores, state, seen > first ? seen - first : 0, args.scale, lane);
    for (uint j = 0; j < 2; ++j) {
      const uint col = lane % 4 * 2 + j;
      own_left[lane / 4 * block_stride + col] = col == lane / 4 ? keep : 0.0f;
    }
    metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
    metal::simdgroup_float8x8 diagonal;
    metal::simdgroup_load(diagonal, own_left, block_stride);
    const metal::simdgroup_float8x8 zero = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint s = 0; s < slices; ++s) {
      fill_cached(right, values, args, kv_head, first, length, s, index);
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
      for (uint j = 0; j < block / 8; ++j) {
        metal::simdgroup_multiply_accumulate(totals.of[s][j], diagonal, totals.of[s][j], zero);
        for (uint p = 0; p < block; p += 8) {
          metal::simdgroup_float8x8 weight;
          metal::simdgroup_float8x8 value;
          metal::simdgroup_load(weight, own_scores + p, block_stride);
          metal::simdgroup_load(value, right + p * block_stride + j * 8, block_stride);
          metal::simdgroup_multiply_accumulate(totals.of[s][j], weight, value, totals.of[s][j]);
        }
      }
      metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    }
  }
  write_out(totals, own_scores, q, out, args, head, my_row, state.sum, lane);
}
