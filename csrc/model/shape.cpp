#include "model/shape.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "flash_moe/error.h"

namespace flash_moe::model {
namespace {

using format::Json;
using format::JsonFields;

// Bounds that no model comes near; they keep every product of dimensions inside int64.
constexpr int64_t width_max = 1 << 20;
constexpr int64_t vocab_max = 1 << 24;
constexpr int64_t layers_max = 4096;
constexpr int64_t experts_max = 65536;
constexpr int64_t context_max = int64_t{1} << 32;

struct Family {
  bool is_3_5 = false;
  bool is_moe_3 = false;        // qwen3_moe; neither: qwen3_next
  bool has_linear = true;       // GatedDeltaNet layers, gated attention, shared expert, zero-centred norms
  double rotary_factor = 0.25;  // when the config states none
};

Family family_of(const JsonFields& root, const std::string& type) {
  if (type == "qwen3_5_moe" || type == "qwen3_5_moe_text") return {true, false, true, 0.25};
  if (type == "qwen3_next") return {false, false, true, 0.25};
  if (type == "qwen3_moe") return {false, true, false, 1.0};
  root.fail("model_type", "is \"" + type +
                              "\", which is not supported (supported: qwen3_5_moe, qwen3_5_moe_text, qwen3_next, "
                              "qwen3_moe)");
}

void refuse_unless(const JsonFields& config, const char* key, bool value, bool supported) {
  if (value != supported) {
    config.fail(key, std::string("is ") + (value ? "true" : "false") + "; only " +
                         (supported ? "true" : "false") + " is supported");
  }
}

// What would change the arithmetic and is not implemented.
void refuse_variants(const JsonFields& config, const Family& family) {
  if (config.has("hidden_act") && config.string("hidden_act") != "silu") {
    config.fail("hidden_act", "is \"" + config.string("hidden_act") + "\"; only silu is supported");
  }
  refuse_unless(config, "attention_bias", config.boolean_or("attention_bias", false), false);
  refuse_unless(config, "use_sliding_window", config.boolean_or("use_sliding_window", false), false);
  if (family.has_linear) {
    refuse_unless(config, "attn_output_gate", config.boolean_or("attn_output_gate", true), true);
  }
  if (family.is_3_5) {
    // transformers ignores the field and always normalises; a config that says otherwise is of another model.
    refuse_unless(config, "norm_topk_prob", config.boolean_or("norm_topk_prob", true), true);
  }
}

// In transformers' order: the rope dictionary under either of its names, then the config itself.
double rope_real(const JsonFields& config, const char* key, double fallback) {
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (config.has(name) && config.fields(name).has(key)) return config.fields(name).real(key);
  }
  return config.real_or(key, fallback);
}

// `rope_scaling` is the older name of `rope_parameters`; either may carry a type, theta and factor.
void refuse_rope_variants(const JsonFields& config, const char* key) {
  if (!config.has(key)) return;
  const JsonFields rope = config.fields(key);
  for (const char* name : {"rope_type", "type"}) {
    if (!rope.has(name)) continue;
    const std::string& type = rope.string(name);
    if (type != "default" && type != "mrope") {
      rope.fail(name, "is \"" + type + "\"; only default is supported");
    }
  }
}

void read_rope(const JsonFields& config, const Family& family, ModelShape& shape) {
  refuse_rope_variants(config, "rope_parameters");
  refuse_rope_variants(config, "rope_scaling");
  shape.rope_theta = rope_real(config, "rope_theta", 0);
  if (!(shape.rope_theta > 0)) {
    config.fail("rope_theta", "is missing or not positive (looked in rope_parameters too)");
  }
  const double factor = rope_real(config, "partial_rotary_factor", family.rotary_factor);
  if (!(factor > 0 && factor <= 1)) config.fail("partial_rotary_factor", "must be in (0, 1]");
  shape.rotary_dim = static_cast<int64_t>(static_cast<double>(shape.head_dim) * factor);
  if (shape.rotary_dim < 2 || shape.rotary_dim % 2 != 0) {
    config.fail("partial_rotary_factor", "gives " + std::to_string(shape.rotary_dim) + " rotary dimensions of " +
                                             std::to_string(shape.head_dim) + "; wanted a positive even number");
  }
}

void read_attention(const JsonFields& config, const Family& family, ModelShape& shape) {
  shape.heads = config.integer("num_attention_heads", 1, width_max);
  shape.kv_heads = config.integer("num_key_value_heads", 1, width_max);
  if (shape.heads % shape.kv_heads != 0) {
    config.fail("num_attention_heads", "is " + std::to_string(shape.heads) + ", not a multiple of " +
                                           std::to_string(shape.kv_heads) + " num_key_value_heads");
  }
  if (family.is_moe_3 && !config.has("head_dim")) {
    if (shape.hidden % shape.heads != 0) {
      config.fail("head_dim", "is missing, and hidden_size is not a multiple of num_attention_heads");
    }
    shape.head_dim = shape.hidden / shape.heads;
  } else {
    shape.head_dim = config.integer("head_dim", 2, width_max);
  }
  shape.attention_gate = family.has_linear;
  shape.zero_centred_norm = family.has_linear;
  read_rope(config, family, shape);
}

void read_linear(const JsonFields& config, ModelShape& shape) {
  shape.linear_k_heads = config.integer("linear_num_key_heads", 1, width_max);
  shape.linear_v_heads = config.integer("linear_num_value_heads", 1, width_max);
  shape.linear_k_dim = config.integer("linear_key_head_dim", 1, width_max);
  shape.linear_v_dim = config.integer("linear_value_head_dim", 1, width_max);
  shape.conv_kernel = config.integer("linear_conv_kernel_dim", 1, 64);
  if (shape.linear_v_heads % shape.linear_k_heads != 0) {
    config.fail("linear_num_value_heads", "is " + std::to_string(shape.linear_v_heads) + ", not a multiple of " +
                                              std::to_string(shape.linear_k_heads) + " linear_num_key_heads");
  }
}

MixerKind mixer_named(const JsonFields& config, const Json& item, const Family& family) {
  const std::string* name = item.string();
  if (name && *name == "full_attention") return MixerKind::full_attention;
  if (name && *name == "linear_attention" && family.has_linear) return MixerKind::linear_attention;
  config.fail("layer_types", "holds " + (name ? "\"" + *name + "\"" : std::string(item.type_name())) +
                                 "; supported: full_attention" +
                                 (family.has_linear ? ", linear_attention" : ""));
}

void read_mixers(const JsonFields& config, const Family& family, ModelShape& shape) {
  const int64_t count = config.integer("num_hidden_layers", 1, layers_max);
  shape.layers.resize(static_cast<size_t>(count));
  if (config.has("layer_types")) {
    const Json::Array& types = config.array("layer_types");
    if (static_cast<int64_t>(types.size()) != count) {
      config.fail("layer_types", "has " + std::to_string(types.size()) + " entries for " +
                                     std::to_string(count) + " num_hidden_layers");
    }
    for (size_t i = 0; i < types.size(); ++i) shape.layers[i].mixer = mixer_named(config, types[i], family);
    return;
  }
  if (!family.has_linear) return;
  const int64_t interval = config.integer_or("full_attention_interval", 4, 1, layers_max);
  for (int64_t i = 0; i < count; ++i) {
    shape.layers[static_cast<size_t>(i)].mixer =
        (i + 1) % interval == 0 ? MixerKind::full_attention : MixerKind::linear_attention;
  }
}

// Layers whose MLP is dense. qwen3_5_moe has none, whatever the keys that it inherits say.
void read_dense_layers(const JsonFields& config, const Family& family, ModelShape& shape) {
  const int64_t step = config.integer_or("decoder_sparse_step", 1, 1, layers_max);
  for (int64_t i = 0; i < shape.layer_count(); ++i) {
    shape.layers[static_cast<size_t>(i)].is_moe = (i + 1) % step == 0;
  }
  if (config.has("mlp_only_layers")) {
    for (const Json& item : config.array("mlp_only_layers")) {
      const int64_t* layer = item.integer();
      if (!layer || *layer < 0 || *layer >= shape.layer_count()) {
        config.fail("mlp_only_layers", "holds something else than layer numbers below " +
                                           std::to_string(shape.layer_count()));
      }
      shape.layers[static_cast<size_t>(*layer)].is_moe = false;
    }
  }
  const bool any_dense = std::any_of(shape.layers.begin(), shape.layers.end(),
                                     [](const LayerShape& layer) { return !layer.is_moe; });
  if (any_dense && family.is_3_5) {
    config.fail("mlp_only_layers", "or decoder_sparse_step asks for dense layers, which qwen3_5_moe does not have");
  }
  if (any_dense) shape.dense_inner = config.integer("intermediate_size", 1, width_max);
}

void read_experts(const JsonFields& config, const Family& family, ModelShape& shape) {
  // transformers 5 writes qwen3_moe's count under its newer name.
  const char* count_key = config.has("num_experts") || !config.has("num_local_experts") ? "num_experts"
                                                                                        : "num_local_experts";
  shape.experts = config.integer(count_key, 1, experts_max);
  shape.experts_per_token = config.integer("num_experts_per_tok", 1, experts_max);
  if (shape.experts_per_token > shape.experts) {
    config.fail("num_experts_per_tok", "is " + std::to_string(shape.experts_per_token) + ", more than the " +
                                           std::to_string(shape.experts) + " experts");
  }
  shape.moe_inner = config.integer("moe_intermediate_size", 1, width_max);
  if (family.has_linear) {
    shape.shared_inner = config.integer("shared_expert_intermediate_size", 1, width_max);
  }
  shape.norm_topk_prob = family.is_3_5 || config.boolean_or("norm_topk_prob", !family.is_moe_3);
}

}  // namespace

ModelShape shape_from_config(const Json& config, const std::string& where) {
  const JsonFields root(config, where);
  const Family family = family_of(root, root.string("model_type"));
  const bool nested = root.has("text_config");
  const JsonFields text = nested ? root.fields("text_config") : root;
  ModelShape shape;
  shape.architecture = nested && text.has("model_type") ? text.string("model_type") : root.string("model_type");
  family_of(text, shape.architecture);
  refuse_variants(text, family);
  shape.hidden = text.integer("hidden_size", 1, width_max);
  shape.vocab = text.integer("vocab_size", 1, vocab_max);
  shape.context = text.integer("max_position_embeddings", 1, context_max);
  const double eps = text.real_or("rms_norm_eps", 1e-6);
  if (!(eps > 0 && eps < 1)) text.fail("rms_norm_eps", "must be above 0 and below 1");
  shape.rms_eps = static_cast<float>(eps);
  // The outer config decides: it is the model that owns the head.
  shape.tied_head = root.has("tie_word_embeddings") ? root.boolean("tie_word_embeddings")
                                                    : text.boolean_or("tie_word_embeddings", false);
  read_mixers(text, family, shape);
  read_attention(text, family, shape);
  if (family.has_linear) read_linear(text, shape);
  read_experts(text, family, shape);
  read_dense_layers(text, family, shape);
  return shape;
}

ModelShape shape_from_config_text(std::string_view text, const std::string& where) {
  return shape_from_config(format::parse_json(text, where, {.depth = 64, .non_finite = true}), where);
}

}  // namespace flash_moe::model
