#include "model/shape.h"

#include <string>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::FormatError;
using flash_moe::MixerKind;
using flash_moe::ModelShape;

namespace {

const std::string next_config = R"({
  "model_type": "qwen3_next", "hidden_size": 64, "vocab_size": 320, "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-05, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
  "rope_theta": 10000000, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
  "linear_value_head_dim": 24, "linear_conv_kernel_dim": 4, "num_experts": 8, "num_experts_per_tok": 3,
  "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "hidden_act": "silu"})";

const std::string moe_config = R"({
  "model_type": "qwen3_moe", "hidden_size": 64, "vocab_size": 320, "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-06, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
  "rope_theta": 1000000.0, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
  "intermediate_size": 256})";

ModelShape parse(const std::string& text) { return flash_moe::model::shape_from_config_text(text, "config.json"); }

// The config with `"key": ...` replaced by `member`, or with `member` added where the key is absent.
std::string with(std::string config, const std::string& key, const std::string& value) {
  const std::string quoted = "\"" + key + "\":";
  const size_t at = config.find(quoted);
  if (at != std::string::npos) {
    const size_t end = config.find_first_of(",}", at);
    const bool last = config[end] == '}';
    const size_t begin = last ? config.rfind(',', at) : at;
    config.erase(begin, last ? end - begin : end + 1 - begin);
  }
  if (value.empty()) return config;
  return config.insert(config.find('{') + 1, quoted + " " + value + ",");
}

void check_refused(const std::string& config, const std::string& key, const std::string& value, const char* part) {
  CHECK_THROWS(parse(with(config, key, value)), FormatError, part);
}

}  // namespace

TEST(shape_of_qwen3_next) {
  const ModelShape shape = parse(next_config);
  CHECK(shape.architecture == "qwen3_next" && shape.hidden == 64 && shape.vocab == 320 && shape.context == 4096);
  CHECK(shape.rms_eps == 1e-5f && !shape.tied_head && shape.layer_count() == 4);
  CHECK(shape.heads == 4 && shape.kv_heads == 2 && shape.head_dim == 32 && shape.rotary_dim == 8);
  CHECK(shape.rope_theta == 1e7 && shape.attention_gate && shape.zero_centred_norm);
  CHECK(shape.linear_k_width() == 32 && shape.linear_v_width() == 96 && shape.conv_channels() == 160);
  CHECK(shape.conv_kernel == 4 && shape.experts == 8 && shape.experts_per_token == 3);
  CHECK(shape.moe_inner == 32 && shape.shared_inner == 48 && shape.norm_topk_prob);
  // The interval that transformers takes when neither key is there.
  CHECK(shape.layers[2].mixer == MixerKind::linear_attention && shape.layers[3].mixer == MixerKind::full_attention);
  CHECK(!parse(with(next_config, "norm_topk_prob", "false")).norm_topk_prob);
}

TEST(shape_of_qwen3_moe) {
  const ModelShape shape = parse(moe_config);
  CHECK(shape.head_dim == 16 && shape.rotary_dim == 16 && !shape.attention_gate && !shape.zero_centred_norm);
  CHECK(shape.shared_inner == 0 && !shape.norm_topk_prob && shape.layers[0].mixer == MixerKind::full_attention);
  CHECK(parse(with(moe_config, "head_dim", "32")).head_dim == 32);
  CHECK(parse(with(moe_config, "norm_topk_prob", "true")).norm_topk_prob);
  CHECK(parse(with(with(moe_config, "num_experts", ""), "num_local_experts", "16")).experts == 16);
}

TEST(shape_of_nested_and_text_only_qwen3_5) {
  std::string text = with(next_config, "model_type", "\"qwen3_5_moe_text\"");
  text = with(text, "rope_theta", "");
  text = with(text, "rope_parameters",
              R"({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]})");
  text = with(text, "layer_types", R"(["full_attention", "linear_attention", "linear_attention", "linear_attention"])");
  const ModelShape flat = parse(text);
  CHECK(flat.architecture == "qwen3_5_moe_text" && flat.rope_theta == 5e5 && flat.rotary_dim == 16);
  CHECK(flat.layers[0].mixer == MixerKind::full_attention && flat.layers[3].mixer == MixerKind::linear_attention);
  CHECK(flat.norm_topk_prob);
  const ModelShape nested = parse(R"({"model_type": "qwen3_5_moe", "tie_word_embeddings": true, "nan": NaN, "text_config": )" + text + "}");
  CHECK(nested.architecture == "qwen3_5_moe_text" && nested.tied_head && nested.hidden == 64);
}

TEST(shape_names_every_missing_dimension) {
  for (const char* key : {"model_type", "hidden_size", "vocab_size", "max_position_embeddings", "num_hidden_layers",
                          "num_attention_heads", "num_key_value_heads", "head_dim", "linear_num_key_heads",
                          "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
                          "linear_conv_kernel_dim", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
                          "shared_expert_intermediate_size"}) {
    check_refused(next_config, key, "", (std::string(key) + " is missing").c_str());
    if (std::string(key) != "model_type") check_refused(next_config, key, "0", (std::string(key) + " must be from").c_str());
    check_refused(next_config, key, "[]", key);
  }
  check_refused(next_config, "rope_theta", "", "rope_theta is missing");
}

TEST(shape_refuses_what_does_not_divide_or_fit) {
  check_refused(next_config, "num_key_value_heads", "3", "not a multiple of 3 num_key_value_heads");
  check_refused(next_config, "linear_num_key_heads", "3", "not a multiple of 3 linear_num_key_heads");
  check_refused(next_config, "num_experts_per_tok", "9", "is 9, more than the 8 experts");
  check_refused(next_config, "hidden_size", "99999999999", "must be from 1 to 1048576");
  check_refused(next_config, "partial_rotary_factor", "0.1", "gives 3 rotary dimensions of 32");
  check_refused(next_config, "partial_rotary_factor", "1.5", "must be in (0, 1]");
  check_refused(next_config, "rms_norm_eps", "0", "rms_norm_eps must be above 0");
  check_refused(next_config, "rope_theta", "-1", "not positive");
  check_refused(moe_config, "num_attention_heads", "6", "head_dim is missing, and hidden_size is not a multiple");
}

TEST(shape_refuses_what_the_forward_pass_does_not_do) {
  check_refused(next_config, "model_type", "\"llama\"", "is \"llama\", which is not supported (supported: qwen3_5_moe");
  check_refused(next_config, "hidden_act", "\"gelu\"", "only silu is supported");
  check_refused(next_config, "attention_bias", "true", "attention_bias is true; only false is supported");
  check_refused(next_config, "attn_output_gate", "false", "attn_output_gate is false; only true");
  check_refused(moe_config, "use_sliding_window", "true", "only false is supported");
  check_refused(moe_config, "rope_scaling", R"({"type": "yarn", "factor": 4.0})", "rope_scaling.type is \"yarn\"; only default");
  check_refused(moe_config, "rope_parameters", R"({"rope_type": "llama3", "rope_theta": 1})", "rope_parameters.rope_type is \"llama3\"");
  const std::string next_5 = with(next_config, "model_type", "\"qwen3_5_moe_text\"");
  check_refused(next_5, "norm_topk_prob", "false", "norm_topk_prob is false; only true");
  check_refused(next_5, "mlp_only_layers", "[1]", "dense layers, which qwen3_5_moe does not have");
}

TEST(shape_reads_layer_patterns) {
  CHECK(parse(with(next_config, "full_attention_interval", "2")).layers[1].mixer == MixerKind::full_attention);
  check_refused(next_config, "layer_types", R"(["full_attention"])", "has 1 entries for 4 num_hidden_layers");
  check_refused(next_config, "layer_types", R"(["full_attention", "full_attention", "full_attention", "mamba"])", "holds \"mamba\"");
  check_refused(next_config, "layer_types", "[1, 2, 3, 4]", "holds an integer");
  check_refused(moe_config, "layer_types", R"(["full_attention", "full_attention", "full_attention", "linear_attention"])",
                "supported: full_attention");
  check_refused(next_config, "full_attention_interval", "0", "must be from 1");
}

TEST(shape_reads_dense_layers) {
  const ModelShape listed = parse(with(moe_config, "mlp_only_layers", "[0, 3]"));
  CHECK(!listed.layers[0].is_moe && listed.layers[1].is_moe && !listed.layers[3].is_moe && listed.dense_inner == 256);
  const ModelShape stepped = parse(with(moe_config, "decoder_sparse_step", "2"));
  CHECK(!stepped.layers[0].is_moe && stepped.layers[1].is_moe);
  check_refused(moe_config, "mlp_only_layers", "[4]", "layer numbers below 4");
  check_refused(with(moe_config, "intermediate_size", ""), "mlp_only_layers", "[0]", "intermediate_size is missing");
}
