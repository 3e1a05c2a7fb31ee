#include "model/weights_plan.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "flash_moe/error.h"
#include "model/weights_names.h"

namespace flash_moe::model {
namespace {

using backend::LayerWeights;
using backend::ModelWeights;
using format::Checkpoint;
using format::MatrixName;
using format::MatrixTensors;
using format::TensorInfo;
using Change = VectorJob::Change;

constexpr uint64_t piece_alignment = 64;

// Collects jobs; keeps count of what was used and what is missing.
class Planner {
 public:
  Planner(const Checkpoint& checkpoint, const format::QuantisationConfig& quantisation, const ModelShape& shape,
          bool with_experts)
      : checkpoint_(checkpoint), quantisation_(quantisation), with_experts_(with_experts),
        names_(find_names(checkpoint)) {
    plan_.resident.shape = shape;
  }

  ModelPlan run() {
    const ModelShape& shape = plan_.resident.shape;
    matrix(names_.prefix + "embed_tokens", shape.vocab, shape.hidden,
           [](ModelWeights& w) -> Matrix& { return w.embedding; });
    stage_ = shape.layer_count() + 1;
    plan_head();
    stage_ = 0;
    vector(names_.prefix + "norm.weight", {shape.hidden}, norm_change(),
           [](ModelWeights& w) -> const float*& { return w.final_norm; });
    plan_.experts.resize(shape.layers.size());
    for (size_t i = 0; i < shape.layers.size(); ++i) {
      const uint64_t before = plan_.resident.bytes;
      stage_ = static_cast<int64_t>(i) + 1;
      plan_layer(i);
      plan_.resident.layer_bytes.push_back(plan_.resident.bytes - before);
    }
    const OtherTensors others = classify_others(checkpoint_, used_, shape, missing_);
    plan_.resident.vision_tensors = others.vision;
    plan_.resident.mtp_tensors = others.mtp;
    plan_.resident.shape.mtp_layers = others.mtp_layers;
    return std::move(plan_);
  }

 private:
  Change norm_change() const {
    return plan_.resident.shape.zero_centred_norm ? Change::plus_one : Change::none;
  }

  uint64_t reserve(uint64_t bytes) {
    const uint64_t offset = plan_.resident.bytes;
    plan_.resident.bytes += (bytes + piece_alignment - 1) / piece_alignment * piece_alignment;
    return offset;
  }

  void use(const MatrixTensors& tensors) {
    for (const TensorInfo* tensor : {tensors.data, tensors.scales, tensors.biases}) {
      if (tensor) used_.insert(tensor);
    }
  }

  void plan_head() {
    const ModelShape& shape = plan_.resident.shape;
    // A tied config with a head of its own in the files keeps the head: the same values in a sane export, and what
    // transformers does when they differ.
    if (shape.tied_head && !checkpoint_.find(names_.head + ".weight")) {
      plan_.resident.head_is_embedding = true;
      return;
    }
    matrix(names_.head, shape.vocab, shape.hidden, [](ModelWeights& w) -> Matrix& { return w.head; });
  }

  std::optional<MatrixTensors> find(const MatrixName& name, int64_t rows, int64_t cols) {
    auto tensors = format::find_matrix(checkpoint_, quantisation_, name, rows, cols);
    if (tensors) {
      use(*tensors);
    } else {
      missing_.push_back(name.data_tensor());
    }
    return tensors;
  }

  void matrix(const std::string& module, int64_t rows, int64_t cols,
              std::function<Matrix&(ModelWeights&)> field) {
    const auto tensors = find({module}, rows, cols);
    if (tensors) add_matrix(module + ".weight", *tensors, {{0, rows}}, std::move(field));
  }

  void add_matrix(const std::string& name, const MatrixTensors& tensors, std::vector<RowRun> runs,
                  std::function<Matrix&(ModelWeights&)> field) {
    MatrixJob job;
    job.stage = stage_;
    job.name = name;
    job.tensors = tensors;
    job.form = tensors.form;
    job.form.rows = 0;
    for (const RowRun& run : runs) {
      job.form.rows += run.count;
      const bool cuts_block = run.begin % fp8_block_size != 0 || (run.count % fp8_block_size != 0 && runs.size() > 1);
      job.widen = job.widen || (job.form.format == MatrixFormat::fp8_block && cuts_block);
    }
    if (job.widen) {
      job.form.format = MatrixFormat::f32;
      job.form.bits = 32;
      job.form.scale_dtype = Dtype::f32;
    }
    job.runs = std::move(runs);
    job.field = std::move(field);
    job.offsets[0] = reserve(static_cast<uint64_t>(job.form.data_bytes()));
    const auto scales_bytes = static_cast<uint64_t>(job.form.scales_bytes());
    if (scales_bytes) job.offsets[1] = reserve(scales_bytes);
    if (job.form.format == MatrixFormat::affine) job.offsets[2] = reserve(scales_bytes);
    plan_.resident.matrices.push_back(std::move(job));
  }

  void vector(const std::string& name, const std::vector<int64_t>& shape, Change change,
              std::function<const float*&(ModelWeights&)> field) {
    if (!checkpoint_.find(name)) {
      missing_.push_back(name);
      return;
    }
    VectorJob job;
    job.stage = stage_;
    job.name = name;
    job.tensor = &checkpoint_.need(name, {Dtype::f32, Dtype::bf16, Dtype::f16}, shape);
    used_.insert(job.tensor);
    job.change = change;
    job.columns = plan_.resident.shape.conv_kernel;
    job.offset = reserve(static_cast<uint64_t>(job.elements()) * sizeof(float));
    job.field = std::move(field);
    plan_.resident.vectors.push_back(std::move(job));
  }

  void plan_layer(size_t i) {
    const ModelShape& shape = plan_.resident.shape;
    const std::string prefix = names_.prefix + "layers." + std::to_string(i) + ".";
    vector(prefix + "input_layernorm.weight", {shape.hidden}, norm_change(),
           [i](ModelWeights& w) -> const float*& { return w.layers[i].input_norm; });
    vector(prefix + "post_attention_layernorm.weight", {shape.hidden}, norm_change(),
           [i](ModelWeights& w) -> const float*& { return w.layers[i].post_norm; });
    if (shape.layers[i].mixer == MixerKind::full_attention) {
      plan_attention(i, prefix + "self_attn.");
    } else {
      plan_delta_net(i, prefix + "linear_attn.");
    }
    if (!shape.layers[i].is_moe) {
      plan_dense_mlp(i, prefix + "mlp.");
      return;
    }
    plan_moe(i, prefix + "mlp.");
    if (with_experts_) {
      plan_.experts[i] = plan_expert_layer(checkpoint_, quantisation_, shape, prefix + "mlp.", used_, missing_);
    }
  }

  void plan_attention(size_t i, const std::string& prefix) {
    const ModelShape& shape = plan_.resident.shape;
    const int64_t q_rows = shape.heads * shape.head_dim * (shape.attention_gate ? 2 : 1);
    const int64_t kv_rows = shape.kv_heads * shape.head_dim;
    matrix(prefix + "q_proj", q_rows, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].attention.q; });
    matrix(prefix + "k_proj", kv_rows, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].attention.k; });
    matrix(prefix + "v_proj", kv_rows, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].attention.v; });
    matrix(prefix + "o_proj", shape.hidden, shape.heads * shape.head_dim,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].attention.o; });
    vector(prefix + "q_norm.weight", {shape.head_dim}, norm_change(),
           [i](ModelWeights& w) -> const float*& { return w.layers[i].attention.q_norm; });
    vector(prefix + "k_norm.weight", {shape.head_dim}, norm_change(),
           [i](ModelWeights& w) -> const float*& { return w.layers[i].attention.k_norm; });
  }

  void plan_delta_net(size_t i, const std::string& prefix) {
    const ModelShape& shape = plan_.resident.shape;
    if (checkpoint_.find(prefix + "in_proj_qkvz.weight") || checkpoint_.find(prefix + "in_proj_ba.weight")) {
      plan_fused_inputs(i, prefix);
    } else {
      matrix(prefix + "in_proj_qkv", shape.conv_channels(), shape.hidden,
             [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.qkv; });
      matrix(prefix + "in_proj_z", shape.linear_v_width(), shape.hidden,
             [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.z; });
      matrix(prefix + "in_proj_b", shape.linear_v_heads, shape.hidden,
             [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.b; });
      matrix(prefix + "in_proj_a", shape.linear_v_heads, shape.hidden,
             [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.a; });
    }
    plan_delta_net_vectors(i, prefix);
    matrix(prefix + "out_proj", shape.hidden, shape.linear_v_width(),
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.out; });
  }

  void plan_delta_net_vectors(size_t i, const std::string& prefix) {
    const ModelShape& shape = plan_.resident.shape;
    const std::string conv = prefix + "conv1d.weight";
    const TensorInfo* conv_tensor = checkpoint_.find(conv);
    // Either convention has the same bytes; norms_hold_one holds all layers to one.
    std::vector<int64_t> conv_shape = {shape.conv_channels(), 1, shape.conv_kernel};
    if (conv_tensor && is_mlx_conv(*conv_tensor)) std::swap(conv_shape[1], conv_shape[2]);
    vector(conv, conv_shape, Change::transpose,
           [i](ModelWeights& w) -> const float*& { return w.layers[i].delta_net.conv; });
    vector(prefix + "A_log", {shape.linear_v_heads}, Change::exponential,
           [i](ModelWeights& w) -> const float*& { return w.layers[i].delta_net.decay_rate; });
    vector(prefix + "dt_bias", {shape.linear_v_heads}, Change::none,
           [i](ModelWeights& w) -> const float*& { return w.layers[i].delta_net.dt_bias; });
    vector(prefix + "norm.weight", {shape.linear_v_dim}, Change::none,
           [i](ModelWeights& w) -> const float*& { return w.layers[i].delta_net.norm; });
  }

  // qwen3_next keeps [q | k | v of its v heads | z of its v heads] of one k head together, then the next head's.
  void plan_fused_inputs(size_t i, const std::string& prefix) {
    const ModelShape& shape = plan_.resident.shape;
    const int64_t per_head = shape.linear_v_heads / shape.linear_k_heads;
    const int64_t k_dim = shape.linear_k_dim;
    const int64_t v_rows = per_head * shape.linear_v_dim;
    const int64_t head_rows = 2 * k_dim + 2 * v_rows;
    const auto runs = [&](int64_t stride, int64_t begin, int64_t count) {
      std::vector<RowRun> out;
      for (int64_t head = 0; head < shape.linear_k_heads; ++head) out.push_back({head * stride + begin, count});
      return out;
    };
    if (const auto qkvz = find({prefix + "in_proj_qkvz"}, shape.linear_k_heads * head_rows, shape.hidden)) {
      std::vector<RowRun> qkv = runs(head_rows, 0, k_dim);
      for (const auto& part : {runs(head_rows, k_dim, k_dim), runs(head_rows, 2 * k_dim, v_rows)}) {
        qkv.insert(qkv.end(), part.begin(), part.end());
      }
      const std::string name = prefix + "in_proj_qkvz.weight";
      add_matrix(name, *qkvz, std::move(qkv),
                 [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.qkv; });
      add_matrix(name, *qkvz, runs(head_rows, 2 * k_dim + v_rows, v_rows),
                 [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.z; });
    }
    if (const auto ba = find({prefix + "in_proj_ba"}, 2 * shape.linear_v_heads, shape.hidden)) {
      const std::string name = prefix + "in_proj_ba.weight";
      add_matrix(name, *ba, runs(2 * per_head, 0, per_head),
                 [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.b; });
      add_matrix(name, *ba, runs(2 * per_head, per_head, per_head),
                 [i](ModelWeights& w) -> Matrix& { return w.layers[i].delta_net.a; });
    }
  }

  void plan_dense_mlp(size_t i, const std::string& prefix) {
    const ModelShape& shape = plan_.resident.shape;
    matrix(prefix + "gate_proj", shape.dense_inner, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].dense.gate; });
    matrix(prefix + "up_proj", shape.dense_inner, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].dense.up; });
    matrix(prefix + "down_proj", shape.hidden, shape.dense_inner,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].dense.down; });
  }

  void plan_moe(size_t i, const std::string& prefix) {
    const ModelShape& shape = plan_.resident.shape;
    matrix(prefix + "gate", shape.experts, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].moe.router; });
    if (shape.shared_inner == 0) return;
    matrix(prefix + "shared_expert.gate_proj", shape.shared_inner, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].moe.shared_gate; });
    matrix(prefix + "shared_expert.up_proj", shape.shared_inner, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].moe.shared_up; });
    matrix(prefix + "shared_expert.down_proj", shape.hidden, shape.shared_inner,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].moe.shared_down; });
    matrix(prefix + "shared_expert_gate", 1, shape.hidden,
           [i](ModelWeights& w) -> Matrix& { return w.layers[i].moe.shared_expert_gate; });
  }

  const Checkpoint& checkpoint_;
  const format::QuantisationConfig& quantisation_;
  bool with_experts_;
  TensorNames names_;
  ModelPlan plan_;
  int64_t stage_ = 0;  // of what is being planned
  UsedTensors used_;
  std::vector<std::string> missing_;
};

}  // namespace

int64_t VectorJob::elements() const {
  return static_cast<int64_t>(tensor->bytes / dtype_bytes(tensor->dtype));
}

ModelPlan plan_model(const Checkpoint& checkpoint, const format::QuantisationConfig& quantisation,
                     const ModelShape& shape, bool with_experts) {
  return Planner(checkpoint, quantisation, shape, with_experts).run();
}

}  // namespace flash_moe::model
