#include "format/matrix_tensors.h"
#include "fuzz.h"
#include "model/shape.h"

namespace {

constexpr const char* next_config = R"({"model_type": "qwen3_next", "hidden_size": 64, "vocab_size": 320,
 "max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "num_hidden_layers": 4, "num_attention_heads": 4,
 "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 1e7, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
 "linear_key_head_dim": 16, "linear_value_head_dim": 24, "linear_conv_kernel_dim": 4, "num_experts": 8,
 "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "hidden_act": "silu",
 "mlp_only_layers": [0], "intermediate_size": 128, "rope_scaling": null})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::run(data, size, [](std::string_view text) {
    const flash_moe::ModelShape shape = flash_moe::model::shape_from_config_text(text, "config.json");
    fuzz::require(shape.hidden > 0 && shape.layer_count() > 0 && shape.heads % shape.kv_heads == 0, "a shape is valid");
    fuzz::require(shape.rotary_dim > 0 && shape.rotary_dim <= shape.head_dim, "rotary dimensions fit the head");
    fuzz::require(shape.experts_per_token <= shape.experts, "top-k fits the experts");
    fuzz::require(shape.conv_channels() >= 0, "widths do not overflow");
  });
  return fuzz::run(data, size, [](std::string_view text) {
    const auto json = flash_moe::format::parse_json(text, "config.json", {.depth = 64, .non_finite = true});
    flash_moe::format::QuantisationConfig(json, "config.json");
  });
}

std::vector<std::string> fuzz::seeds() {
  const std::string next = next_config;
  std::string text = next;
  text.replace(text.find("qwen3_next"), 10, "qwen3_5_moe_text");
  return {next, text, R"({"model_type": "qwen3_5_moe", "text_config": )" + text + "}",
          R"({"quantization": {"bits": 4, "group_size": 64, "mode": "affine", "m": {"bits": 8, "group_size": 64}, "n": false}})",
          R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})"};
}

std::vector<std::string> fuzz::words() {
  return {"0", "-1", "99999999999999", "1e400", "NaN", "null", "[]", "{}", "\"\"", "\"full_attention\"", "\"layer_types\": [", "true", "0.25",
          "\"qwen3_moe\"", "\"rope_parameters\": {\"rope_theta\": 1}", "\"full_attention_interval\": 3,", "\"decoder_sparse_step\": 2,", "1048576"};
}
