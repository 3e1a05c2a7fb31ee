#include "model/weights.h"

#include <cmath>
#include <cstring>
#include <string>

#include "flash_moe/error.h"
#include "model/tiny_model.h"
#include "test.h"

using flash_moe::CancelledError;
using flash_moe::ConfigError;
using flash_moe::Dtype;
using flash_moe::ExpertMatrices;
using flash_moe::FormatError;
using flash_moe::Matrix;
using flash_moe::MatrixFormat;
using flash_moe::model::LoadedWeights;
using flash_moe::model::ModelFiles;
using test::Tensor;

namespace {

const std::string config_3_5 = test::tiny_config("qwen3_5_moe_text");
const std::string config_next = test::tiny_config("qwen3_next");

struct Loaded {
  std::unique_ptr<ModelFiles> files;
  LoadedWeights loaded;

  explicit Loaded(const test::Folder& folder) : files(ModelFiles::open(folder.path())), loaded(files->load(test::allocate_host)) {}
  const flash_moe::backend::LayerWeights& layer(size_t i) const { return loaded.weights.layers[i]; }
};

bool same(const Matrix& matrix, const std::string& bytes) {
  return matrix.data_bytes() == static_cast<int64_t>(bytes.size()) && std::memcmp(matrix.data, bytes.data(), bytes.size()) == 0 &&
         reinterpret_cast<uintptr_t>(matrix.data) % 64 == 0;
}

// One expert as the store would read it: extents into a slot.
ExpertMatrices read_expert(const ModelFiles& files, int64_t layer, int64_t expert, std::vector<uint8_t>& slot) {
  slot.assign(files.experts()->slot_bytes(), 0);
  std::vector<flash_moe::format::Extent> extents;
  files.experts()->extents(layer, expert, extents);
  for (const auto& extent : extents) {
    files.experts()->files()[extent.file]->read_exact(slot.data() + extent.slot_offset, extent.bytes, extent.file_offset);
  }
  return files.experts()->matrices(layer, expert, slot.data());
}

std::string rows(const Tensor& tensor, int64_t begin, int64_t count) {
  const size_t row = tensor.data.size() / static_cast<size_t>(tensor.shape[0]);
  return tensor.data.substr(static_cast<size_t>(begin) * row, static_cast<size_t>(count) * row);
}

void check_open_fails(const std::vector<Tensor>& tensors, const char* part) {
  const test::Folder folder;
  test::write_model(folder, tensors, config_3_5);
  CHECK_THROWS(ModelFiles::open(folder.path()), FormatError, part);
}

void check_load_fails(const std::vector<Tensor>& tensors, const char* part) {
  const test::Folder folder;
  test::write_model(folder, tensors, config_3_5);
  const auto files = ModelFiles::open(folder.path());
  CHECK_THROWS(files->load(test::allocate_host), FormatError, part);
}

// The module's weight replaced by an affine one of `bits`, group 32.
void quantise_module(std::vector<Tensor>& tensors, const std::string& module, int64_t bits) {
  Tensor& weight = test::named(tensors, module + ".weight");
  const std::string name = weight.name.substr(0, weight.name.size() - 7);
  auto shape = weight.shape;
  shape.back() = shape.back() * bits / 32;
  auto scales = weight.shape;
  scales.back() /= 32;
  weight = test::pattern(weight.name, Dtype::u32, shape);
  tensors.push_back(test::pattern(name + ".scales", Dtype::bf16, scales));
  tensors.push_back(test::pattern(name + ".biases", Dtype::bf16, scales));
}

// The same model in MLX's names: stacked experts, convolution [channels, kernel, 1].
std::vector<Tensor> mlx_tensors(const std::string& prefix) {
  std::vector<Tensor> out;
  for (Tensor tensor : test::tiny_tensors(Dtype::bf16, prefix)) {
    const size_t at = tensor.name.find("experts.");
    if (at != std::string::npos && tensor.name.find("shared") == std::string::npos) {
      const std::string stem = tensor.name.substr(0, at) + "switch_mlp.";
      const bool down = tensor.name.find("down_proj") != std::string::npos;
      for (const std::string role : {"gate_proj", "up_proj", "down_proj"}) {
        if ((role == "down_proj") == down) out.push_back(test::pattern(stem + role + ".weight", Dtype::bf16, {3, 32, 32}));
      }
      continue;
    }
    if (tensor.name.find("conv1d") != std::string::npos) tensor.shape = {48, 4, 1};
    if (tensor.name == "lm_head.weight" && prefix == "language_model.model.") tensor.name = "language_model.lm_head.weight";
    out.push_back(std::move(tensor));
  }
  return out;
}

}  // namespace

TEST(weights_of_a_hugging_face_folder_land_where_the_backend_looks) {
  for (const Dtype dtype : {Dtype::bf16, Dtype::f32}) {
    const test::Folder folder;
    auto tensors = test::tiny_tensors(dtype);
    test::write_model(folder, tensors, config_3_5);
    const Loaded model(folder);
    const auto& w = model.loaded.weights;
    CHECK(same(w.embedding, test::named(tensors, "embed_tokens.weight").data) && same(w.head, test::named(tensors, "lm_head.weight").data));
    CHECK(same(model.layer(0).delta_net.qkv, test::named(tensors, "in_proj_qkv.weight").data));
    CHECK(same(model.layer(0).delta_net.a, test::named(tensors, "in_proj_a.weight").data));
    CHECK(same(model.layer(1).attention.q, test::named(tensors, "q_proj.weight").data));
    CHECK(same(model.layer(1).moe.router, test::named(tensors, "layers.1.mlp.gate.weight").data));
    CHECK(same(model.layer(1).moe.shared_down, test::named(tensors, "layers.1.mlp.shared_expert.down_proj.weight").data));
    CHECK(model.layer(0).attention.q.empty() && model.layer(1).delta_net.qkv.empty());
    const Tensor& norm = test::named(tensors, "layers.1.input_layernorm.weight");
    const Tensor& gated = test::named(tensors, "linear_attn.norm.weight");
    const Tensor& a_log = test::named(tensors, "A_log");
    const Tensor& conv = test::named(tensors, "conv1d.weight");
    for (size_t i = 0; i < 4; ++i) {
      CHECK(model.layer(1).input_norm[i] == 1.0f + test::element(norm.data, dtype, i));
      CHECK(model.layer(0).delta_net.norm[i] == test::element(gated.data, dtype, i));
      CHECK(model.layer(0).delta_net.decay_rate[i] == std::exp(test::element(a_log.data, dtype, i)));
    }
    for (size_t channel = 0; channel < 48; ++channel) {
      for (size_t tap = 0; tap < 4; ++tap) {
        CHECK(model.layer(0).delta_net.conv[tap * 48 + channel] == test::element(conv.data, dtype, channel * 4 + tap));
      }
    }
  }
}

TEST(fused_experts_are_split_into_gate_and_up) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors();
  test::write_model(folder, tensors, config_3_5);
  const auto files = ModelFiles::open(folder.path());
  std::vector<uint8_t> slot;
  for (int64_t expert = 0; expert < 3; ++expert) {
    const ExpertMatrices matrices = read_expert(*files, 1, expert, slot);
    const auto expect = [&](const Matrix& matrix, const std::string& name, int64_t row) {
      const std::string want = test::named(tensors, name).data.substr(static_cast<size_t>(row) * 64, 32 * 64);
      CHECK(matrix.rows == 32 && matrix.cols == 32 && std::memcmp(matrix.data, want.data(), want.size()) == 0);
    };
    expect(matrices.gate, "layers.1.mlp.experts.gate_up_proj", expert * 64);
    expect(matrices.up, "layers.1.mlp.experts.gate_up_proj", expert * 64 + 32);
    expect(matrices.down, "layers.1.mlp.experts.down_proj", expert * 32);
  }
  CHECK(files->summary().quantisation == "bf16" && files->summary().format == "safetensors");
  CHECK(files->summary().expert_bytes == 3 * 32 * 32 * 2 && files->summary().experts_bytes == 6 * 3 * 32 * 32 * 2);
  CHECK(files->summary().layers[0].expert_bits == 16.0);
}

TEST(experts_with_tensors_of_their_own_are_found) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors();
  for (const std::string layer : {"layers.0.", "layers.1."}) {
    test::remove(tensors, layer + "mlp.experts.gate_up_proj");
    test::remove(tensors, layer + "mlp.experts.down_proj");
    for (const std::string expert : {"0", "1", "2"}) {
      for (const std::string role : {".gate_proj", ".up_proj", ".down_proj"}) {
        tensors.push_back(test::pattern("model." + layer + "mlp.experts." + expert + role + ".weight", Dtype::bf16, {32, 32}));
      }
    }
  }
  test::write_model(folder, tensors, config_3_5);
  const auto files = ModelFiles::open(folder.path());
  std::vector<uint8_t> slot;
  const ExpertMatrices matrices = read_expert(*files, 0, 2, slot);
  const std::string want = test::named(tensors, "layers.0.mlp.experts.2.up_proj.weight").data;
  CHECK(std::memcmp(matrices.up.data, want.data(), want.size()) == 0);
  test::remove(tensors, "layers.1.mlp.experts.1.up_proj.weight");
  test::write_model(folder, tensors, config_3_5);
  CHECK_THROWS(ModelFiles::open(folder.path()), FormatError, "1 tensor is missing: model.layers.1.mlp.experts.1.up_proj.weight");
}

TEST(qwen3_next_fused_inputs_are_taken_apart_by_head) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors(Dtype::bf16, "model.", true);
  test::write_model(folder, tensors, config_next);
  const Loaded model(folder);
  // A k head has rows [q 8 | k 8 | v 2 * 4 | z 2 * 4] and [b 2 | a 2].
  const Tensor& qkvz = test::named(tensors, "in_proj_qkvz.weight");
  const Tensor& ba = test::named(tensors, "in_proj_ba.weight");
  const auto both = [](const Tensor& tensor, int64_t stride, int64_t begin, int64_t count) {
    return rows(tensor, begin, count) + rows(tensor, stride + begin, count);
  };
  const auto& net = model.layer(0).delta_net;
  CHECK(same(net.qkv, both(qkvz, 32, 0, 8) + both(qkvz, 32, 8, 8) + both(qkvz, 32, 16, 8)));
  CHECK(same(net.z, both(qkvz, 32, 24, 8)));
  CHECK(same(net.b, both(ba, 4, 0, 2)) && same(net.a, both(ba, 4, 2, 2)));
}

TEST(fused_fp8_inputs_whose_blocks_are_cut_become_f32) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors(Dtype::bf16, "model.", true);
  Tensor& qkvz = test::named(tensors, "in_proj_qkvz.weight");
  qkvz = test::pattern(qkvz.name, Dtype::f8_e4m3, {64, 32});
  const std::string codes = qkvz.data;
  tensors.push_back(test::floats(qkvz.name + "_scale_inv", {1, 1}, {0.25f}, Dtype::bf16));
  test::write_model(folder, tensors, config_next);
  const Loaded model(folder);
  const Matrix& z = model.layer(0).delta_net.z;
  CHECK(z.format == MatrixFormat::f32 && z.rows == 16 && z.cols == 32);
  for (size_t i = 0; i < 8 * 32; ++i) {
    float value;
    std::memcpy(&value, z.data + 4 * (i + 8 * 32), 4);  // the second k head's
    CHECK(value == 0.25f * flash_moe::f8_e4m3_to_f32(static_cast<uint8_t>(codes[(32 + 24) * 32 + i])));
  }
}

TEST(mlx_folders_have_their_own_norms_names_and_formats) {
  for (const std::string prefix : {"model.", "language_model.model."}) {
    const test::Folder folder;
    auto tensors = mlx_tensors(prefix);
    for (const char* module : {"q_proj", "in_proj_z", "embed_tokens"}) quantise_module(tensors, module, 4);
    quantise_module(tensors, "layers.0.mlp.switch_mlp.up_proj", 3);
    quantise_module(tensors, "layers.1.mlp.gate", 8);
    test::write_model(folder, tensors, config_3_5, R"({"format": "mlx"})");
    const Loaded model(folder);
    CHECK(model.files->summary().format == "mlx" && !model.files->shape().zero_centred_norm);
    const Tensor& norm = test::named(tensors, "layers.0.input_layernorm.weight");
    CHECK(model.layer(0).input_norm[3] == test::element(norm.data, Dtype::bf16, 3));
    const Matrix& q = model.layer(1).attention.q;
    CHECK(q.format == MatrixFormat::affine && q.bits == 4 && q.group == 32 && q.rows == 64 && q.cols == 32);
    CHECK(same(q, test::named(tensors, "q_proj.weight").data));
    CHECK(std::memcmp(q.biases, test::named(tensors, "q_proj.biases").data.data(), 128) == 0);
    CHECK(model.layer(1).moe.router.bits == 8 && model.layer(1).attention.k.format == MatrixFormat::bf16);
    std::vector<uint8_t> slot;
    const ExpertMatrices matrices = read_expert(*model.files, 0, 1, slot);
    CHECK(matrices.up.bits == 3 && matrices.gate.format == MatrixFormat::bf16);
    CHECK(std::memcmp(matrices.up.scales, test::named(tensors, "layers.0.mlp.switch_mlp.up_proj.scales").data.data() + 64, 64) == 0);
    CHECK(model.files->summary().quantisation == "bf16, affine 3-bit g32 (mixed)");
  }
}

TEST(convolution_shapes_decide_the_norms_and_must_agree) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors();
  test::named(tensors, "conv1d.weight").shape = {48, 4, 1};
  test::write_model(folder, tensors, config_3_5);
  CHECK(!ModelFiles::open(folder.path())->shape().zero_centred_norm);
  auto two = test::tiny_tensors();
  test::named(two, "conv1d.weight").shape = {4, 48, 1};
  check_open_fails(two, "conv1d.weight has shape [4, 48, 1], wanted [48, 4, 1]");
  tensors.push_back(test::pattern("model.layers.1.linear_attn.conv1d.weight", Dtype::bf16, {48, 1, 4}));
  check_open_fails(tensors, "[channels, kernel, 1] in 1 of 2 layers");
}

TEST(tied_heads_are_the_embedding) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors();
  const std::string tied = test::tiny_config("qwen3_5_moe_text", R"(, "tie_word_embeddings": true)");
  test::write_model(folder, tensors, tied);
  CHECK(Loaded(folder).loaded.weights.head.data != Loaded(folder).loaded.weights.embedding.data);
  test::remove(tensors, "lm_head.weight");
  test::write_model(folder, tensors, tied);
  const Loaded model(folder);
  CHECK(model.loaded.weights.head.data == model.loaded.weights.embedding.data && model.loaded.weights.head.rows == 10);
  check_open_fails(tensors, "1 tensor is missing: lm_head.weight");
}

TEST(vision_and_mtp_tensors_are_skipped_with_a_count) {
  const test::Folder folder;
  auto tensors = test::tiny_tensors(Dtype::bf16, "model.language_model.");
  tensors.push_back(test::pattern("model.visual.blocks.0.norm1.weight", Dtype::bf16, {7}));
  tensors.push_back(test::pattern("model.visual.patch_embed.proj.bias", Dtype::f32, {7}));
  tensors.push_back(test::pattern("mtp.fc.weight", Dtype::bf16, {32, 64}));
  tensors.push_back(test::pattern("mtp.layers.0.self_attn.q_proj.weight", Dtype::bf16, {64, 32}));
  tensors.push_back(test::pattern("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::f32, {4}));
  test::write_model(folder, tensors, R"({"model_type": "qwen3_5_moe", "text_config": )" + config_3_5 + "}");
  const auto files = ModelFiles::open(folder.path());
  CHECK(files->summary().vision_tensors == 2 && files->summary().mtp_tensors == 2 && files->shape().mtp_layers == 1);
  test::named(tensors, "mtp.fc.weight").shape = {64, 32};
  test::write_model(folder, tensors, R"({"model_type": "qwen3_5_moe", "text_config": )" + config_3_5 + "}");
  CHECK_THROWS(ModelFiles::open(folder.path()), FormatError, "mtp.fc.weight has shape [64, 32], wanted [32, 64]");
}

TEST(missing_and_unknown_tensors_are_named) {
  auto tensors = test::tiny_tensors();
  tensors.push_back(test::pattern("model.layers.0.linear_attn.extra", Dtype::bf16, {1}));
  check_open_fails(tensors, "1 tensor is not known for qwen3_5_moe_text: model.layers.0.linear_attn.extra");
  test::remove(tensors, "k_norm.weight");
  test::remove(tensors, "dt_bias");
  check_open_fails(tensors, "2 tensors are missing: model.layers.0.linear_attn.dt_bias, model.layers.1.self_attn.k_norm.weight; not known: "
                            "model.layers.0.linear_attn.extra");
  for (const char* name : {"v_proj.weight", "o_proj.weight", "q_proj.weight"}) test::remove(tensors, name);
  check_open_fails(tensors, "5 tensors are missing: ");
  check_open_fails(tensors, " and 1 more");
  test::remove(tensors, "layers.0.mlp.experts.gate_up_proj");
  check_open_fails(tensors, "6 tensors are missing: model.layers.0.linear_attn.dt_bias, model.layers.0.mlp.experts.gate_up_proj (or ");
}

TEST(shapes_that_the_config_does_not_have_are_refused) {
  for (const char* name : {"in_proj_qkv.weight", "out_proj.weight", "A_log", "q_norm.weight", "mlp.gate.weight", "lm_head.weight",
                           "mlp.experts.down_proj", "mlp.shared_expert_gate.weight"}) {
    auto tensors = test::tiny_tensors();
    Tensor& tensor = test::named(tensors, name);
    auto shape = tensor.shape;
    shape[0] += 1;
    tensor = test::pattern(tensor.name, Dtype::bf16, shape);
    check_open_fails(tensors, (tensor.name + " has shape").c_str());
  }
}

TEST(nan_in_norms_and_scales_is_refused_by_name) {
  const std::string bf16_nan("\xc0\x7f", 2);
  for (const char* name : {"layers.0.input_layernorm.weight", "A_log", "conv1d.weight", "model.norm.weight", "k_norm.weight"}) {
    auto tensors = test::tiny_tensors();
    test::named(tensors, name).data.replace(2, 2, bf16_nan);
    check_load_fails(tensors, (test::named(tensors, name).name + ": NaN or infinity at element 1").c_str());
  }
  for (const char* part : {"q_proj.scales", "q_proj.biases"}) {
    auto tensors = test::tiny_tensors();
    quantise_module(tensors, "q_proj", 4);
    test::named(tensors, part).data.replace(6, 2, std::string("\x80\xff", 2));
    check_load_fails(tensors, "q_proj.weight: NaN or infinity at element 3");
  }
}

TEST(loading_reports_progress_and_can_be_cancelled) {
  const test::Folder folder;
  test::write_model(folder, test::tiny_tensors(), config_3_5);
  const auto files = ModelFiles::open(folder.path());
  uint64_t last = 0;
  uint64_t total = 0;
  files->load(test::allocate_host, [&](uint64_t done, uint64_t all) {
    CHECK(done >= last && done <= all);
    last = done;
    total = all;
    return false;
  });
  CHECK(last == total && total > 0);
  CHECK_THROWS(files->load(test::allocate_host, [](uint64_t, uint64_t) { return true; }), CancelledError, "cancelled");
}

TEST(a_failed_read_is_an_io_error_and_the_next_load_works) {
  const test::Folder folder;
  test::write_model(folder, test::tiny_tensors(), config_3_5);
  const auto files = ModelFiles::open(folder.path());
  std::filesystem::resize_file(folder.file("model.safetensors"), 30000);
  CHECK_THROWS(files->load(test::allocate_host), flash_moe::IoError, "end of file");
  test::write_model(folder, test::tiny_tensors(), config_3_5);
  CHECK(files->load(test::allocate_host).weights.embedding.rows == 10);
}

TEST(folders_that_are_no_models_are_named) {
  const test::Folder folder;
  CHECK_THROWS(ModelFiles::open(folder.file("none")), ConfigError, "/none does not exist");
  CHECK_THROWS(ModelFiles::open(folder.path()), ConfigError, "has no config.json");
  folder.write("config.json", config_3_5);
  CHECK_THROWS(ModelFiles::open(folder.path()), ConfigError, "has no *.safetensors");
  CHECK_THROWS(ModelFiles::open(folder.file("config.json")), ConfigError, "is not a folder");
  folder.write("config.json", "version https://git-lfs.github.com/spec/v1\n");
  CHECK_THROWS(ModelFiles::open(folder.path()), FormatError, "config.json: this is a Git-LFS pointer");
}
