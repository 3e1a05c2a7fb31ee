// The two ends of the model: rows of the embedding, and the largest logit. The head itself is matvec or matmul.
#include "weights.h"

using namespace flash_moe;

// y [row_count, cols] = rows tokens[i] of the matrix.
kernel void embed(const device uchar* data [[buffer(0)]], const device uchar* scales [[buffer(1)]],
                  const device uchar* biases [[buffer(2)]], const device int* tokens [[buffer(3)]],
                  device float* y [[buffer(4)]], constant EmbedArgs& args [[buffer(5)]],
                  uint2 at [[thread_position_in_grid]]) {
  if (at.x >= args.cols || at.y >= args.row_count) return;
  const Weights weights = {data, scales, biases};
  y[ulong(at.y) * args.cols + at.x] = weight_at(weights, first_format, args.cols, ulong(tokens[at.y]), at.x);
}

// ids[row] = the first index of the largest of n logits; a NaN is never the largest.
kernel void argmax(const device float* logits [[buffer(0)]], device int* ids [[buffer(1)]],
                   constant ArgmaxArgs& args [[buffer(2)]], uint row [[threadgroup_position_in_grid]],
                   uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]]) {
  threadgroup float values[argmax_threads];
  threadgroup uint places[argmax_threads];
  const device float* from = logits + ulong(row) * args.n;
  float value = -INFINITY;
  uint place = 0xffffffffu;
  for (uint i = thread_index; i < args.n; i += threads) {
    if (from[i] > value || (place == 0xffffffffu && from[i] == value)) {
      value = from[i];
      place = i;
    }
  }
  values[thread_index] = value;
  places[thread_index] = place;
  for (uint width = argmax_threads / 2; width > 0; width /= 2) {
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    if (thread_index < width) {
      const float other = values[thread_index + width];
      const uint other_place = places[thread_index + width];
      const bool better = other > values[thread_index] ||
                          (other == values[thread_index] && other_place < places[thread_index]);
      if (better) {
        values[thread_index] = other;
        places[thread_index] = other_place;
      }
    }
  }
  if (thread_index == 0) ids[row] = places[0] == 0xffffffffu ? 0 : int(places[0]);
}
