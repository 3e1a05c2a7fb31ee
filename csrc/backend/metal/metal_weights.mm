// Takes the resident weights: where each lies for the GPU, and the pipelines specialised for its format.
#include <algorithm>

#import "backend/metal/metal_backend.h"
#include "flash_moe/error.h"
#include "kernels/rope.h"

namespace flash_moe::backend {
namespace {

uint32_t element_kind(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return metal::element_f32;
    case Dtype::f16:
      return metal::element_f16;
    case Dtype::bf16:
      return metal::element_bf16;
    default:
      throw ConfigError(std::string("backend=\"metal\": scales of type ") + dtype_name(dtype) +
                        " have no kernel; use backend=\"cpu\"");
  }
}

uint32_t format_of(const Matrix& m) {
  switch (m.format) {
    case MatrixFormat::f32:
      return metal::weight_format(metal::element_f32, 0, 0, 0);
    case MatrixFormat::f16:
      return metal::weight_format(metal::element_f16, 0, 0, 0);
    case MatrixFormat::bf16:
      return metal::weight_format(metal::element_bf16, 0, 0, 0);
    case MatrixFormat::affine:
      return metal::weight_format(metal::element_affine, m.bits, m.group, element_kind(m.scale_dtype));
    case MatrixFormat::mxfp4:
      return metal::weight_format(metal::element_mxfp4, m.bits, m.group, 0);
    case MatrixFormat::nvfp4:
      return metal::weight_format(metal::element_nvfp4, m.bits, m.group, 0);
    case MatrixFormat::mxfp8:
      return metal::weight_format(metal::element_mxfp8, m.bits, m.group, 0);
    case MatrixFormat::fp8_block:
      break;
  }
  return metal::weight_format(metal::element_fp8_block, m.bits, fp8_block_size, element_kind(m.scale_dtype));
}

uint32_t data_alignment(const Matrix& m) {
  return m.format == MatrixFormat::f16 || m.format == MatrixFormat::bf16 ? 2 : 4;
}

void require_aligned(const Matrix& m, const std::string& name) {
  if (reinterpret_cast<uintptr_t>(m.data) % data_alignment(m) != 0)
    throw FormatError("backend=\"metal\": " + name + " lies at an address that is no multiple of " +
                      std::to_string(data_alignment(m)) + "; write the model as a pack (flash-moe pack)");
}

}  // namespace

MetalMatrix MetalBackend::resident(const Matrix& matrix, const char* name) {
  MetalMatrix made;
  if (matrix.empty()) return made;
  require_aligned(matrix, name);
  made.format = format_of(matrix);
  made.rows = static_cast<uint32_t>(matrix.rows);
  made.cols = static_cast<uint32_t>(matrix.cols);
  const auto scale_bytes = static_cast<size_t>(matrix.scales_bytes());
  made.data = regions_.find(matrix.data, static_cast<size_t>(matrix.data_bytes()));
  made.scales = matrix.scales ? regions_.find(matrix.scales, scale_bytes) : made.data;
  made.biases = matrix.biases ? regions_.find(matrix.biases, scale_bytes) : made.data;
  made.matvec = device_->pipeline("matvec", {{metal::constant_format, made.format}});
  if (is_fast_) made.matmul = device_->pipeline("matmul", {{metal::constant_format, made.format}});
  return made;
}

MetalPlace MetalBackend::resident(const float* values, int64_t count) {
  return regions_.find(values, static_cast<size_t>(count) * sizeof(float));
}

MetalBackend::MlpMatrices MetalBackend::resident_mlp(const Matrix& gate, const Matrix& up, const Matrix& down,
                                                     const char* name) {
  MlpMatrices made{resident(gate, name), resident(up, name), resident(down, name), nil};
  made.gated = device_->pipeline("gated_matvec", {{metal::constant_format, made.gate.format},
                                                  {metal::constant_second_format, made.up.format}});
  return made;
}

MetalBackend::AttentionMatrices MetalBackend::resident_attention(const AttentionWeights& w) {
  return {resident(w.q, "q_proj"),      resident(w.k, "k_proj"),
          resident(w.v, "v_proj"),      resident(w.o, "o_proj"),
          resident(w.q_norm, shape_.head_dim), resident(w.k_norm, shape_.head_dim)};
}

MetalBackend::DeltaMatrices MetalBackend::resident_delta(const DeltaNetWeights& w) {
  return {resident(w.qkv, "in_proj_qkv"),
          resident(w.z, "in_proj_z"),
          resident(w.b, "in_proj_b"),
          resident(w.a, "in_proj_a"),
          resident(w.out, "out_proj"),
          resident(w.conv, shape_.conv_kernel * shape_.conv_channels()),
          resident(w.decay_rate, shape_.linear_v_heads),
          resident(w.dt_bias, shape_.linear_v_heads),
          resident(w.norm, shape_.linear_v_dim)};
}

void MetalBackend::make_fixed_kernels() {
  using namespace metal;
  const auto kv = kv_is_bf16_ ? 1u : 0u;
  const auto gate = shape_.attention_gate ? 1u : 0u;
  const auto head_dim = static_cast<uint32_t>(shape_.head_dim);
  kernels_.embed = device_->pipeline("embed", {{constant_format, embedding_.format}});
  kernels_.rms_norm = device_->pipeline("rms_norm");
  kernels_.silu_mul = device_->pipeline("silu_mul");
  kernels_.router_topk = device_->pipeline("router_topk");
  kernels_.combine = device_->pipeline("combine");
  kernels_.combine_norm = device_->pipeline("combine_norm");
  const auto has = [&](MixerKind kind) {
    return std::any_of(shape_.layers.begin(), shape_.layers.end(), [&](const LayerShape& l) { return l.mixer == kind; });
  };
  if (has(MixerKind::full_attention)) {
    if (shape_.head_dim > 256)
      throw ConfigError("backend=\"metal\": head_dim " + std::to_string(shape_.head_dim) + ", supported are up to 256");
    kernels_.qk_norm_rope_append = device_->pipeline("qk_norm_rope_append", {{constant_kv_is_bf16, kv}});
    kernels_.attention_decode =
        device_->pipeline("attention_decode", {{constant_head_dim, head_dim}, {constant_kv_is_bf16, kv}});
    kernels_.attention_merge =
        device_->pipeline("attention_merge", {{constant_head_dim, head_dim}, {constant_attention_gate, gate}});
    if (is_fast_)
      kernels_.attention_prefill = device_->pipeline(
          "attention_prefill",
          {{constant_head_dim, head_dim}, {constant_kv_is_bf16, kv}, {constant_attention_gate, gate}});
  }
  if (has(MixerKind::linear_attention)) {
    if (shape_.linear_k_dim > 256 || shape_.conv_kernel < 2)
      throw ConfigError("backend=\"metal\": linear_key_head_dim " + std::to_string(shape_.linear_k_dim) + ", conv kernel " +
                        std::to_string(shape_.conv_kernel) + "; supported are up to 256, and 2 or more");
    kernels_.conv_silu = device_->pipeline("conv_silu");
    kernels_.delta_qk_norm = device_->pipeline("delta_qk_norm");
    kernels_.gated_delta =
        device_->pipeline("gated_delta", {{constant_k_dim, static_cast<uint32_t>(shape_.linear_k_dim)}});
    kernels_.gated_norm = device_->pipeline("gated_norm");
  }
}

void MetalBackend::set_shape(const ModelShape& shape, int64_t experts_per_token) {
  shape_ = shape;
  experts_per_token_ = experts_per_token;
  if (experts_per_token > metal::experts_per_token_max)
    throw ConfigError("backend=\"metal\": " + std::to_string(experts_per_token) + " experts per token, supported are up to " +
                      std::to_string(metal::experts_per_token_max));
  rope_frequencies_.resize(static_cast<size_t>(shape_.rotary_dim / 2));
  kernels::rope_frequencies(rope_frequencies_.data(), shape_.rotary_dim, shape_.rope_theta);
}

void MetalBackend::set_weights(const ModelWeights& weights) {
  embedding_ = resident(weights.embedding, "embed_tokens");
  head_ = resident(weights.head, "lm_head");
  final_norm_ = resident(weights.final_norm, shape_.hidden);
  layers_.clear();
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& from = weights.layers[i];
    Layer layer;
    layer.input_norm = resident(from.input_norm, shape_.hidden);
    layer.post_norm = resident(from.post_norm, shape_.hidden);
    if (shape_.layers[i].mixer == MixerKind::full_attention) {
      layer.attention = resident_attention(from.attention);
    } else {
      layer.delta_net = resident_delta(from.delta_net);
    }
    if (!shape_.layers[i].is_moe) {
      layer.mlp = resident_mlp(from.dense.gate, from.dense.up, from.dense.down, "mlp");
    } else {
      layer.router = resident(from.moe.router, "router");
      if (shape_.shared_inner != 0) {
        layer.shared_expert_gate = resident(from.moe.shared_expert_gate, "shared_expert_gate");
        layer.mlp = resident_mlp(from.moe.shared_gate, from.moe.shared_up, from.moe.shared_down, "shared_expert");
      }
    }
    layers_.push_back(layer);
  }
  make_fixed_kernels();
}

const MetalBackend::ExpertKernels& MetalBackend::expert_kernels(const ExpertMatrices& m) {
  const std::string name = "an expert";
  const uint32_t gate = format_of(m.gate);
  const uint32_t up = format_of(m.up);
  const uint32_t down = format_of(m.down);
  for (const Matrix* matrix : {&m.gate, &m.up, &m.down}) require_aligned(*matrix, name);
  for (const auto& known : expert_kernels_)
    if (known->gate == gate && known->up == up && known->down == down) return *known;
  using namespace metal;
  auto made = std::make_unique<ExpertKernels>();
  made->gate = gate;
  made->up = up;
  made->down = down;
  made->gate_up_rows = device_->pipeline("expert_gate_up", {{constant_format, gate}, {constant_second_format, up}});
  made->down_rows = device_->pipeline("expert_down", {{constant_format, down}});
  if (is_fast_) {
    made->gate_up_tiles = device_->pipeline("expert_gate_up_tiles", {{constant_format, gate}, {constant_second_format, up}});
    made->down_tiles = device_->pipeline("expert_down_tiles", {{constant_format, down}});
  }
  expert_kernels_.push_back(std::move(made));
  return *expert_kernels_.back();
}

}  // namespace flash_moe::backend
