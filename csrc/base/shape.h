#pragma once
// The dimensions of a model, as its config.json states them; validated once in model/shape.cpp.

#include <cstdint>
#include <string>
#include <vector>

namespace flash_moe {

enum class MixerKind : uint8_t { full_attention, linear_attention };

struct LayerShape {
  MixerKind mixer = MixerKind::full_attention;
  bool is_moe = true;  // false: a dense MLP of `dense_inner` (qwen3_moe's mlp_only_layers)
};

struct ModelShape {
  std::string architecture;  // model_type of the text model
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t context = 0;  // max_position_embeddings
  float rms_eps = 1e-6f;
  bool tied_head = false;
  std::vector<LayerShape> layers;
  int64_t mtp_layers = 0;  // layers of the multi-token-prediction head present in the folder

  // Full attention.
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // head_dim * partial_rotary_factor
  double rope_theta = 0;
  bool attention_gate = false;  // q_proj gives [q | gate] a head
  bool zero_centred_norm = false;  // files hold w where y = x * (1 + w); never so in MLX folders

  // GatedDeltaNet.
  int64_t linear_k_heads = 0;
  int64_t linear_v_heads = 0;
  int64_t linear_k_dim = 0;
  int64_t linear_v_dim = 0;
  int64_t conv_kernel = 0;

  // Mixture of experts.
  int64_t experts = 0;
  int64_t experts_per_token = 0;  // as trained
  int64_t moe_inner = 0;
  int64_t shared_inner = 0;  // 0: no shared expert
  int64_t dense_inner = 0;
  bool norm_topk_prob = true;

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  int64_t linear_k_width() const { return linear_k_heads * linear_k_dim; }
  int64_t linear_v_width() const { return linear_v_heads * linear_v_dim; }
  int64_t conv_channels() const { return 2 * linear_k_width() + linear_v_width(); }
};

}  // namespace flash_moe
