#include "model/pack_model.h"

#include <cstring>
#include <filesystem>
#include <string>

#include "flash_moe/error.h"
#include "format/affine.h"
#include "format/pack.h"
#include "model/tiny_model.h"
#include "model/weights.h"
#include "test.h"

using flash_moe::CancelledError;
using flash_moe::ConfigError;
using flash_moe::Dtype;
using flash_moe::ExpertMatrices;
using flash_moe::FormatError;
using flash_moe::Matrix;
using flash_moe::MatrixFormat;
using namespace flash_moe::model;

namespace fs = std::filesystem;

namespace {

struct Source {
  test::Folder folder;
  std::vector<test::Tensor> tensors;

  explicit Source(Dtype dtype = Dtype::bf16, bool fused_inputs = false)
      : tensors(test::tiny_tensors(dtype, "model.", fused_inputs)) {
    write(fused_inputs ? "qwen3_next" : "qwen3_5_moe_text");
  }
  void write(const std::string& type = "qwen3_5_moe_text") const {
    test::write_model(folder, tensors, test::tiny_config(type));
    folder.write("tokenizer.json", "{\"t\": 1}");
    folder.write("chat_template.jinja", "{{ messages }}");
    folder.write(".hidden", "x");
    folder.write("pytorch_model.bin", "weights");
  }
};

// A path inside a scratch folder that does not exist yet.
struct Destination {
  test::Folder folder;
  std::string path = folder.file("pack");
};

PackSettings quantised(int bits) {
  PackSettings settings;
  settings.bits = bits;
  settings.group = 32;
  return settings;
}

std::string matrix_bytes(const Matrix& matrix) {
  const auto text = [](const uint8_t* data, int64_t bytes) {
    return data ? std::string(reinterpret_cast<const char*>(data), static_cast<size_t>(bytes)) : std::string();
  };
  return text(matrix.data, matrix.data_bytes()) + text(matrix.scales, matrix.scales_bytes()) +
         text(matrix.biases, matrix.scales_bytes());
}

std::string expert_bytes(const ModelFiles& files, int64_t layer, int64_t expert) {
  std::vector<uint8_t> slot(files.experts()->slot_bytes());
  std::vector<flash_moe::format::Extent> extents;
  files.experts()->extents(layer, expert, extents);
  for (const auto& extent : extents) {
    files.experts()->files()[extent.file]->read_exact(slot.data() + extent.slot_offset, extent.bytes, extent.file_offset);
  }
  const ExpertMatrices matrices = files.experts()->matrices(layer, expert, slot.data());
  return matrix_bytes(matrices.gate) + matrix_bytes(matrices.up) + matrix_bytes(matrices.down);
}

// Everything a forward pass would read, as one string.
std::string all_bytes(const std::string& folder) {
  const auto files = ModelFiles::open(folder);
  const auto loaded = files->load(test::allocate_host);
  std::string out;
  for (const MatrixJob& job : files->resident_plan().matrices) {
    auto weights = loaded.weights;
    out += job.name + matrix_bytes(job.field(weights));
  }
  for (const VectorJob& job : files->resident_plan().vectors) {
    auto weights = loaded.weights;
    out += job.name + std::string(reinterpret_cast<const char*>(job.field(weights)), static_cast<size_t>(job.elements()) * 4);
  }
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (int64_t expert = 0; expert < 3; ++expert) out += expert_bytes(*files, layer, expert);
  }
  return out;
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::string folder_bytes(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  std::string out;
  for (const std::string& name : names) out += name + "\n" + read_file(path + "/" + name);
  return out;
}

}  // namespace

TEST(a_copied_pack_holds_what_the_source_holds) {
  for (const bool fused_inputs : {false, true}) {
    const Source source(Dtype::bf16, fused_inputs);
    const Destination destination;
    const PackResult result = pack_folder(source.folder.path(), destination.path, {});
    CHECK(result.layers_written == 2 && result.layers_kept == 0);
    CHECK(all_bytes(destination.path) == all_bytes(source.folder.path()));
    const auto files = ModelFiles::open(destination.path);
    CHECK(files->summary().format == "pack" && files->summary().quantisation == "bf16");
    std::vector<flash_moe::format::Extent> extents;
    files->experts()->extents(1, 2, extents);
    CHECK(extents.size() == 1 && extents[0].file_offset % 4096 == 0 && extents[0].slot_offset == 0);
    CHECK(read_file(destination.path + "/tokenizer.json") == "{\"t\": 1}" && fs::exists(destination.path + "/chat_template.jinja"));
    CHECK(!fs::exists(destination.path + "/.hidden") && !fs::exists(destination.path + "/pytorch_model.bin"));
    verify_pack(destination.path);
  }
}

TEST(a_quantised_pack_has_the_formats_asked_for) {
  const Source source;
  const Destination destination;
  PackSettings settings = quantised(4);
  settings.overrides = {{"down_proj", 6, 0}, {"layers.1.self_attn.*", 5, 0}, {"embed_tokens", 0, 0}};
  pack_folder(source.folder.path(), destination.path, settings);
  const auto files = ModelFiles::open(destination.path);
  const auto loaded = files->load(test::allocate_host);
  CHECK(files->summary().layers[0].experts_format == "affine 4-bit g32, affine 6-bit g32");
  CHECK(loaded.weights.embedding.format == MatrixFormat::bf16 && loaded.weights.head.bits == 8);
  CHECK(loaded.weights.layers[1].attention.q.bits == 5 && loaded.weights.layers[0].delta_net.qkv.bits == 8);
  CHECK(loaded.weights.layers[0].moe.router.bits == 8 && loaded.weights.layers[0].moe.shared_expert_gate.bits == 8);
  CHECK(loaded.weights.layers[0].moe.shared_down.bits == 6);
  // 16 inputs do not divide into groups: as in the source.
  CHECK(loaded.weights.layers[0].delta_net.out.format == MatrixFormat::bf16);
  // The bytes are those of the rows rounded one by one.
  const auto original = ModelFiles::open(source.folder.path());
  const auto from = original->load(test::allocate_host);
  const Matrix& k = loaded.weights.layers[1].attention.k;
  std::vector<float> values(32);
  std::vector<uint8_t> data(static_cast<size_t>(k.row_bytes())), scales(2), biases(2);
  for (int64_t row = 0; row < k.rows; ++row) {
    flash_moe::format::dequantise_row(from.weights.layers[1].attention.k, row, values.data());
    CHECK(flash_moe::format::quantise_affine_row(values.data(), k, {data.data(), scales.data(), biases.data()}));
    CHECK(std::memcmp(data.data(), k.data + row * k.row_bytes(), data.size()) == 0);
    CHECK(std::memcmp(scales.data(), k.scales + row * 2, 2) == 0 && std::memcmp(biases.data(), k.biases + row * 2, 2) == 0);
  }
  verify_pack(destination.path);
}

TEST(dense_bits_zero_leaves_the_rest_as_it_is) {
  const Source source(Dtype::f32);
  const Destination destination;
  PackSettings settings = quantised(3);
  settings.dense_bits = 0;
  pack_folder(source.folder.path(), destination.path, settings);
  const auto files = ModelFiles::open(destination.path);
  CHECK(files->summary().quantisation == "affine 3-bit g32");
  CHECK(files->load(test::allocate_host).weights.layers[0].moe.router.format == MatrixFormat::f32);
  CHECK(files->expert_forms(0).gate.scale_dtype == Dtype::f32);
}

TEST(quantised_sources_are_rounded_again_only_when_told) {
  const Source source;
  const Destination eight;
  pack_folder(source.folder.path(), eight.path, quantised(8));
  const Destination again;
  CHECK_THROWS(pack_folder(eight.path, again.path, quantised(4)), ConfigError, "quantised already (affine 8-bit g32)");
  CHECK(!fs::exists(again.path));
  PackSettings settings = quantised(4);
  settings.allow_requantise = true;
  pack_folder(eight.path, again.path, settings);
  CHECK(ModelFiles::open(again.path)->summary().quantisation == "affine 4-bit g32");
  // More bits than the source has bring nothing: kept.
  const Destination up;
  settings = quantised(8);
  settings.allow_requantise = true;
  pack_folder(again.path, up.path, settings);
  CHECK(ModelFiles::open(up.path)->summary().quantisation == "affine 4-bit g32");
  // A pack of a pack is a copy.
  const Destination copy;
  pack_folder(eight.path, copy.path, {});
  CHECK(all_bytes(copy.path) == all_bytes(eight.path));
}

TEST(a_pack_stopped_anywhere_never_loads_and_resumes_to_the_same_bytes) {
  const Source source;
  const Destination whole;
  pack_folder(source.folder.path(), whole.path, quantised(4));
  const std::string want = folder_bytes(whole.path);
  int stops = 0;
  for (int stop_at = 1;; stop_at += 3) {
    const Destination destination;
    int calls = 0;
    bool stopped = false;
    try {
      pack_folder(source.folder.path(), destination.path, quantised(4), [&](uint64_t done, uint64_t total) {
        CHECK(done <= total);
        return ++calls == stop_at;
      });
    } catch (const CancelledError&) {
      stopped = true;
    }
    if (!stopped) break;
    ++stops;
    CHECK_THROWS(ModelFiles::open(destination.path), FormatError, "this pack is unfinished");
    const PackResult result = pack_folder(source.folder.path(), destination.path, quantised(4));
    CHECK(result.layers_written + result.layers_kept == 2);
    CHECK(folder_bytes(destination.path) == want);
  }
  CHECK(stops >= 5);
}

TEST(a_finished_pack_is_left_alone_and_other_settings_are_refused) {
  const Source source;
  const Destination destination;
  pack_folder(source.folder.path(), destination.path, quantised(4));
  const std::string before = folder_bytes(destination.path);
  CHECK(pack_folder(source.folder.path(), destination.path, quantised(4)).layers_kept == 2);
  CHECK_THROWS(pack_folder(source.folder.path(), destination.path, quantised(3)), ConfigError, "of another source or with other options");
  const Source other(Dtype::f32);
  CHECK_THROWS(pack_folder(other.folder.path(), destination.path, quantised(4)), ConfigError, "of another source or with other options");
  CHECK(folder_bytes(destination.path) == before);
}

TEST(resuming_rewrites_what_does_not_read_back_right) {
  const Source source;
  const Destination destination;
  pack_folder(source.folder.path(), destination.path, quantised(4));
  const std::string want = folder_bytes(destination.path);
  for (const char* name : {"experts.01.pack", "dense.safetensors"}) {
    const std::string path = destination.path + "/" + name;
    std::string bytes = read_file(path);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    std::ofstream(path, std::ios::binary) << bytes;
    CHECK_THROWS(verify_pack(destination.path), FormatError, name);
    auto manifest = *flash_moe::format::read_manifest(destination.path);
    manifest.complete = false;
    std::ofstream(destination.path + "/manifest.json", std::ios::binary) << write_manifest(manifest);
    const PackResult result = pack_folder(source.folder.path(), destination.path, quantised(4));
    CHECK(result.layers_written == (std::string(name) == "experts.01.pack" ? 1 : 0));
    CHECK(folder_bytes(destination.path) == want);
  }
}

TEST(damaged_packs_are_named) {
  const Source source;
  const Destination destination;
  pack_folder(source.folder.path(), destination.path, {});
  const std::string path = destination.path + "/experts.00.pack";
  std::string bytes = read_file(path);
  bytes[bytes.size() - 5000] = static_cast<char>(bytes[bytes.size() - 5000] ^ 64);
  std::ofstream(path, std::ios::binary) << bytes;
  CHECK_THROWS(verify_pack(destination.path), FormatError, "experts.00.pack: record 2 has checksum");
  fs::resize_file(path, bytes.size() - 1);
  CHECK_THROWS(ModelFiles::open(destination.path), FormatError, "is the copy complete?");
  fs::remove(path);
  CHECK_THROWS(ModelFiles::open(destination.path), flash_moe::IoError, "experts.00.pack");
}

TEST(settings_that_cannot_be_are_refused_before_anything_is_written) {
  const Source source;
  const Destination destination;
  const auto refuse = [&](PackSettings settings, const char* part) {
    CHECK_THROWS(pack_folder(source.folder.path(), destination.path, settings), ConfigError, part);
    CHECK(!fs::exists(destination.path));
  };
  refuse(quantised(7), "bits must be 2, 3, 4, 5, 6 or 8");
  PackSettings settings = quantised(4);
  settings.group = 48;
  refuse(settings, "group must be 32, 64 or 128, got 48");
  settings = quantised(4);
  settings.overrides = {{"down_porj", 6, 0}};
  refuse(settings, "override down_porj matches no module");
  settings.overrides = {{"mlp.gate", 4, 0}};
  refuse(settings, "asks for 4 bits; routers and shared-expert gates need 8");
  settings.overrides = {{"down_proj", 9, 0}};
  refuse(settings, "bits of override down_proj");
  settings.bits = 0;
  settings.overrides = {{"down_proj", 4, 0}};
  refuse(settings, "needs bits");
}

TEST(destinations_that_hold_something_else_are_refused) {
  const Source source;
  CHECK_THROWS(pack_folder(source.folder.path(), source.folder.path(), {}), ConfigError, "is the source itself");
  const test::Folder taken;
  taken.write("letter.txt", "dear");
  CHECK_THROWS(pack_folder(source.folder.path(), taken.path(), {}), ConfigError, "is not empty and holds no pack");
  CHECK(taken.read("letter.txt") == "dear");
}

TEST(a_pack_killed_while_it_wrote_its_first_file_starts_again) {
  const Source source;
  const test::Folder killed;
  killed.write("manifest.json.partial", "{\"format");
  pack_folder(source.folder.path(), killed.path(), {});
  CHECK(ModelFiles::open(killed.path()) != nullptr);
  CHECK(!std::filesystem::exists(killed.path() + "/manifest.json.partial"));
}

TEST(weights_that_are_not_numbers_are_not_quantised) {
  Source source;
  test::Tensor& experts = test::named(source.tensors, "layers.1.mlp.experts.down_proj");
  experts.data.replace((32 * 32 + 5) * 2, 2, std::string("\xc0\x7f", 2));
  source.write();
  const Destination destination;
  CHECK_THROWS(pack_folder(source.folder.path(), destination.path, quantised(4)), FormatError, "layer 1 expert 1 down row 0 holds NaN");
  CHECK_THROWS(ModelFiles::open(destination.path), FormatError, "unfinished");
}
