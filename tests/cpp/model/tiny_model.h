#pragma once
// A two-layer model (one GatedDeltaNet, one full-attention layer) as a folder, for tests of the loader and the pack.

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "format/tensor_folder.h"

namespace test {

using flash_moe::Dtype;

// hidden 32, 2 heads of 16 with 1 kv head, 2 k heads of 8 and 4 v heads of 4, 3 experts of 32, shared 64.
inline std::string tiny_config(const std::string& model_type, const std::string& more = "") {
  return R"({"model_type": ")" + model_type + R"(", "hidden_size": 32, "vocab_size": 10, "max_position_embeddings": 64,
    "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "rope_theta": 10000.0, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 4, "linear_conv_kernel_dim": 4,
    "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64)" + more + "}";
}

inline void add_block(std::vector<Tensor>& out, const std::string& prefix, Dtype dtype) {
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) { out.push_back(pattern(prefix + name, dtype, shape)); };
  add("input_layernorm.weight", {32});
  add("post_attention_layernorm.weight", {32});
  add("mlp.gate.weight", {3, 32});
  add("mlp.shared_expert.gate_proj.weight", {64, 32});
  add("mlp.shared_expert.up_proj.weight", {64, 32});
  add("mlp.shared_expert.down_proj.weight", {32, 64});
  add("mlp.shared_expert_gate.weight", {1, 32});
  add("mlp.experts.gate_up_proj", {3, 64, 32});
  add("mlp.experts.down_proj", {3, 32, 32});
}

// Hugging Face names and layout; every value is finite.
inline std::vector<Tensor> tiny_tensors(Dtype dtype = Dtype::bf16, const std::string& prefix = "model.", bool fused_inputs = false) {
  std::vector<Tensor> out;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) { out.push_back(pattern(name, dtype, shape)); };
  add(prefix + "embed_tokens.weight", {10, 32});
  const std::string linear = prefix + "layers.0.linear_attn.";
  if (fused_inputs) {
    add(linear + "in_proj_qkvz.weight", {64, 32});
    add(linear + "in_proj_ba.weight", {8, 32});
  } else {
    add(linear + "in_proj_qkv.weight", {48, 32});
    add(linear + "in_proj_z.weight", {16, 32});
    add(linear + "in_proj_b.weight", {4, 32});
    add(linear + "in_proj_a.weight", {4, 32});
  }
  add(linear + "conv1d.weight", {48, 1, 4});
  add(linear + "A_log", {4});
  add(linear + "dt_bias", {4});
  add(linear + "norm.weight", {4});
  add(linear + "out_proj.weight", {32, 16});
  add_block(out, prefix + "layers.0.", dtype);
  const std::string full = prefix + "layers.1.self_attn.";
  add(full + "q_proj.weight", {64, 32});
  add(full + "k_proj.weight", {16, 32});
  add(full + "v_proj.weight", {16, 32});
  add(full + "o_proj.weight", {32, 32});
  add(full + "q_norm.weight", {16});
  add(full + "k_norm.weight", {16});
  add_block(out, prefix + "layers.1.", dtype);
  add(prefix + "norm.weight", {32});
  add("lm_head.weight", {10, 32});
  return out;
}

inline Tensor& named(std::vector<Tensor>& tensors, const std::string& end) {
  return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& tensor) {
    return tensor.name.size() >= end.size() && tensor.name.compare(tensor.name.size() - end.size(), end.size(), end) == 0;
  });
}

inline void remove(std::vector<Tensor>& tensors, const std::string& end) {
  tensors.erase(tensors.begin() + (&named(tensors, end) - tensors.data()));
}

inline void write_model(const Folder& folder, const std::vector<Tensor>& tensors, const std::string& config,
                        const std::string& metadata = "") {
  folder.write("config.json", config);
  folder.write("model.safetensors", safetensors_bytes(tensors, metadata));
}

// Element i of a BF16 or F32 tensor's bytes.
inline float element(const std::string& bytes, Dtype dtype, size_t i) {
  if (dtype == Dtype::f32) {
    float value;
    std::memcpy(&value, bytes.data() + 4 * i, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, bytes.data() + 2 * i, 2);
  return flash_moe::bf16_to_f32(half);
}

class HostMemory final : public flash_moe::backend::DeviceMemory {
 public:
  explicit HostMemory(size_t bytes) : bytes_(bytes), storage_(new uint8_t[bytes + 64]()) {
    data_ = storage_.get() + (64 - reinterpret_cast<uintptr_t>(storage_.get()) % 64) % 64;
  }
  uint8_t* data() const override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<uint8_t[]> storage_;
  uint8_t* data_;
};

inline std::unique_ptr<flash_moe::backend::DeviceMemory> allocate_host(size_t bytes) {
  return std::make_unique<HostMemory>(bytes);
}

}  // namespace test
