// Choice of experts, and what they add to the residual stream (docs/MODEL.md section 4).
#include "common.h"

using namespace flash_moe;

// Softmax over all logits of a row and the k largest, ranked; ties go to the lower id.
//   logits [row_count, experts], ids and weights [row_count, k]
// A simdgroup finds the best logit that is behind the last one found, k times. NaN logits give NaN weights and valid,
// distinct ids: a NaN ranks behind all numbers.
struct Candidate {
  float value;
  uint id;
};

inline float rankable(float logit) { return metal::isnan(logit) ? -INFINITY : logit; }

inline bool is_better(Candidate a, Candidate b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

inline Candidate best_of_simdgroup(Candidate mine) {
  for (ushort step = simd_width / 2; step > 0; step /= 2) {
    const Candidate other = {metal::simd_shuffle_xor(mine.value, step), metal::simd_shuffle_xor(mine.id, step)};
    if (is_better(other, mine)) mine = other;
  }
  return mine;
}

kernel void router_topk(const device float* logits [[buffer(0)]], device int* ids [[buffer(1)]],
                        device float* weights [[buffer(2)]], constant RouterArgs& args [[buffer(3)]],
                        uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const device float* from = logits + ulong(row) * args.experts;
  Candidate last = {INFINITY, 0};
  float maximum = 0.0f;
  float chosen_sum = 0.0f;
  float total = 0.0f;
  float mine = 0.0f;  // lane j keeps the weight of rank j
  for (uint rank = 0; rank < args.per_row; ++rank) {
    Candidate best = {-INFINITY, args.experts};
    for (uint i = lane; i < args.experts; i += simd_width) {
      const Candidate here = {rankable(from[i]), i};
      const bool is_left = rank == 0 || is_better(last, here);
      if (is_left && is_better(here, best)) best = here;
    }
    last = best_of_simdgroup(best);
    if (rank == 0) {
      // What a NaN logit hides from the comparison shows in the sum.
      maximum = last.value;
      float sum = 0.0f;
      for (uint i = lane; i < args.experts; i += simd_width) sum += metal::precise::exp(from[i] - maximum);
      total = metal::simd_sum(sum);
    }
    const float weight = metal::precise::exp(from[last.id] - maximum) / total;
    chosen_sum += weight;
    if (lane == rank) mine = weight;
    if (lane == 0) ids[ulong(row) * args.per_row + rank] = int(last.id);
  }
  if (lane < args.per_row) weights[ulong(row) * args.per_row + lane] = args.normalise != 0 ? mine / chosen_sum : mine;
}

// What the experts of a row add to element i.
//   outputs [row_count * k, hidden], weights [row_count, k], shared [row_count, hidden], shared_gate [row_count]
// In rank order, so that the sum does not depend on which expert was read first.
inline float expert_sum(const device float* outputs, const device float* weights, const device float* shared,
                        const device float* shared_gate, constant CombineArgs& args, uint row, uint i) {
  float sum = 0.0f;
  for (uint rank = 0; rank < args.per_row; ++rank) {
    const ulong assignment = ulong(row) * args.per_row + rank;
    sum = metal::fma(weights[assignment], outputs[assignment * args.hidden + i], sum);
  }
  if (args.has_shared != 0) {
    sum = metal::fma(sigmoid(shared_gate[row]), shared[ulong(row) * args.hidden + i], sum);
  }
  return sum;
}

kernel void combine(device float* h [[buffer(0)]], const device float* outputs [[buffer(1)]],
                    const device float* weights [[buffer(2)]], const device float* shared [[buffer(3)]],
                    const device float* shared_gate [[buffer(4)]], constant CombineArgs& args [[buffer(5)]],
                    uint row [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                    uint threads [[threads_per_threadgroup]]) {
  for (uint i = thread_index; i < args.hidden; i += threads) {
    h[ulong(row) * args.hidden + i] += expert_sum(outputs, weights, shared, shared_gate, args, row, i);
  }
}

// combine, and x = rms_norm(h) * norm: one pass over h instead of two dispatches. A thread normalises the elements that
// it has just written.
kernel void combine_norm(device float* h [[buffer(0)]], const device float* outputs [[buffer(1)]],
                         const device float* weights [[buffer(2)]], const device float* shared [[buffer(3)]],
                         const device float* shared_gate [[buffer(4)]], constant CombineArgs& args [[buffer(5)]],
                         const device float* norm [[buffer(6)]], device float* x [[buffer(7)]],
                         uint row [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float partial[32];
  device float* to = h + ulong(row) * args.hidden;
  float squares = 0.0f;
  for (uint i = thread_index; i < args.hidden; i += threads) {
    const float value = to[i] + expert_sum(outputs, weights, shared, shared_gate, args, row, i);
    to[i] = value;
    squares = metal::fma(value, value, squares);
  }
  const float total = metal::simd_sum(squares);
  if (lane == 0) partial[simdgroup] = total;
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  float sum = 0.0f;
  for (uint s = 0; s < threads / simd_width; ++s) sum += partial[s];
  const float scale = 1.0f / metal::precise::sqrt(sum / float(args.hidden) + args.eps);
  for (uint i = thread_index; i < args.hidden; i += threads) x[ulong(row) * args.hidden + i] = to[i] * scale * norm[i];
}
