#pragma once
// From config.json to ModelShape: the one place that reads the model's hyper-parameters, and that refuses what the
// forward pass does not implement.

#include <string>
#include <string_view>

#include "base/shape.h"
#include "format/json.h"

namespace flash_moe::model {

// Architectures: qwen3_5_moe (its text_config), qwen3_5_moe_text, qwen3_next, qwen3_moe. Keys that a config leaves
// out take the default that transformers has for that architecture, where it has one that a release relies on;
// dimensions have none. Throws FormatError naming the field, what it is and what is supported. `mtp_layers` is left 0
// and `zero_centred_norm` as the architecture's Hugging Face files have it: both are facts about the files.
ModelShape shape_from_config(const format::Json& config, const std::string& where);
ModelShape shape_from_config_text(std::string_view text, const std::string& where);

}  // namespace flash_moe::model
