#pragma once
// The resident weights of a model as a backend sees them: views, with the shape on every field.
// model/weights.cpp fills them from a checkpoint into memory that the backend allocated.

#include <vector>

#include "base/matrix.h"
#include "base/shape.h"

namespace flash_moe::backend {

// Norm weights are f32 with the 1 of zero-centred checkpoints already added.
struct AttentionWeights {
  Matrix q;  // [heads * head_dim * (gate ? 2 : 1), hidden]; per head [q | gate]
  Matrix k;  // [kv_heads * head_dim, hidden]
  Matrix v;  // [kv_heads * head_dim, hidden]
  Matrix o;  // [hidden, heads * head_dim]
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
};

struct DeltaNetWeights {
  Matrix qkv;  // [2 * k_width + v_width, hidden]: all q heads, all k heads, all v heads
  Matrix z;    // [v_width, hidden]
  Matrix b;    // [v_heads, hidden]
  Matrix a;    // [v_heads, hidden]
  const float* conv = nullptr;        // [conv_kernel, channels]: transposed at load; tap 0 is the oldest
  const float* decay_rate = nullptr;  // [v_heads]: exp(A_log)
  const float* dt_bias = nullptr;     // [v_heads]
  const float* norm = nullptr;        // [v_dim], plain w
  Matrix out;                         // [hidden, v_width]
};

struct MoeWeights {
  Matrix router;              // [experts, hidden]
  Matrix shared_gate;         // [shared_inner, hidden]; empty without a shared expert
  Matrix shared_up;           // [shared_inner, hidden]
  Matrix shared_down;         // [hidden, shared_inner]
  Matrix shared_expert_gate;  // [1, hidden]
};

struct LayerWeights {
  const float* input_norm = nullptr;  // [hidden]
  const float* post_norm = nullptr;   // [hidden]
  AttentionWeights attention;         // of full_attention layers
  DeltaNetWeights delta_net;          // of linear_attention layers
  MoeWeights moe;                     // of layers with is_moe
  ExpertMatrices dense;               // of layers without: [dense_inner, hidden] ...
};

struct ModelWeights {
  ModelShape shape;
  Matrix embedding;                   // [vocab, hidden]
  Matrix head;                        // [vocab, hidden]; the embedding again when tied
  const float* final_norm = nullptr;  // [hidden]
  std::vector<LayerWeights> layers;
};

}  // namespace flash_moe::backend
