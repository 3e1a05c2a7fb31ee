#include "format/pack.h"

#include <string>

#include "flash_moe/error.h"
#include "format/tensor_folder.h"
#include "test.h"

using flash_moe::Dtype;
using flash_moe::ExpertMatrices;
using flash_moe::FormatError;
using flash_moe::Matrix;
using flash_moe::MatrixFormat;
using flash_moe::ModelShape;
using namespace flash_moe::format;

namespace {

Matrix affine(int64_t rows, int64_t cols, int bits) {
  Matrix form;
  form.format = MatrixFormat::affine;
  form.bits = static_cast<uint8_t>(bits);
  form.group = 32;
  form.scale_dtype = Dtype::bf16;
  form.rows = rows;
  form.cols = cols;
  return form;
}

PackManifest sample() {
  PackManifest manifest;
  manifest.complete = true;
  manifest.source = Json::Object{{"a", 1}};
  manifest.options = Json::Object{};
  manifest.dense = {"dense.safetensors", 12, 0xfedcba98u};
  PackLayer layer = layout_record({affine(32, 64, 4), affine(32, 64, 4), affine(64, 32, 3)});
  layer.layer = 1;
  layer.file = "experts.01.pack";
  layer.checksums = {1, 0xffffffffu};
  manifest.layers.push_back(layer);
  return manifest;
}

ModelShape sample_shape() {
  ModelShape shape;
  shape.hidden = 64;
  shape.moe_inner = 32;
  shape.experts = 2;
  shape.layers.resize(2);
  shape.layers[0].is_moe = false;
  return shape;
}

// The sample's text with `from` replaced.
std::string edited(const std::string& from, const std::string& to) {
  std::string text = write_manifest(sample());
  const size_t at = text.find(from);
  CHECK(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

void check_rejected(const std::string& from, const std::string& to, const char* part) {
  CHECK_THROWS(parse_manifest(edited(from, to), "manifest.json"), FormatError, part);
}

}  // namespace

TEST(records_are_aligned_and_their_parts_too) {
  const PackLayer layer = layout_record({affine(32, 64, 4), affine(32, 64, 4), affine(64, 32, 3)});
  CHECK(layer.gate.data_offset == 0 && layer.gate.scales_offset == 1024 && layer.gate.biases_offset == 1152);
  CHECK(layer.up.data_offset == 1280 && layer.down.data_offset == 2560 && layer.down.scales_offset == 2560 + 768);
  CHECK(layer.record_bytes == 4096);
  Matrix plain;
  plain.format = MatrixFormat::bf16;
  plain.bits = 16;
  plain.rows = 3;
  plain.cols = 5;
  const PackLayer odd = layout_record({plain, plain, plain});
  CHECK(odd.up.data_offset == 64 && odd.down.data_offset == 128 && odd.gate.scales_offset == 0);
}

TEST(manifest_written_is_read_back_equal) {
  const PackManifest manifest = sample();
  const PackManifest back = parse_manifest(write_manifest(manifest), "m");
  CHECK(write_manifest(back) == write_manifest(manifest));
  CHECK(back.complete && back.layers[0].checksums[1] == 0xffffffffu && back.layers[0].down.form.bits == 3);
  CHECK(back.dense.checksum == 0xfedcba98u);
}

TEST(manifest_rejects_each_violation) {
  check_rejected("flash-moe pack", "other pack", "manifest.json: format is not");
  check_rejected("\"version\": 1", "\"version\": 2", "version is 2; this flash-moe reads version 1");
  check_rejected("\"complete\": true", "\"complete\": 1", "complete must be true or false");
  check_rejected("\"dense\": {", "\"dense_\": {", "dense is missing from a complete pack");
  check_rejected("\"dense.safetensors\"", "\"../x\"", "dense.file must be the name of a file");
  check_rejected("\"experts.01.pack\"", "\"\"", "layers[0].file must be the name of a file");
  check_rejected("\"record_bytes\": 4096", "\"record_bytes\": 8192", "record_bytes is 8192, but its matrices make 4096");
  check_rejected("\"format\": \"affine\"", "\"format\": \"gguf\"", "gate.format is \"gguf\"");
  check_rejected("\"bits\": 4", "\"bits\": 7", "gate.bits and group do not belong to format affine");
  check_rejected("\"group\": 32", "\"group\": 16", "gate.bits and group");
  check_rejected("\"BF16\"", "\"I8\"", "scale_dtype is \"I8\"");
  check_rejected("\"rows\": 32", "\"rows\": 0", "rows must be from 1");
  check_rejected("\"data_offset\": 1280", "\"data_offset\": 1281", "layers[0].up has other offsets");
  check_rejected("[1, 4294967295]", "[1, 4294967296]", "checksums holds something else");
  check_rejected("[1, 4294967295]", "[]", "checksums is empty");
  check_rejected("\"source\": {", "\"source\": 1, \"x\": {", "source: wanted an object");
  check_rejected("{\n  \"format\"", "[\n  \"format\"", "manifest.json:");
}

TEST(manifest_layers_ascend) {
  PackManifest manifest = sample();
  manifest.layers.push_back(manifest.layers[0]);
  CHECK_THROWS(parse_manifest(write_manifest(manifest), "m"), FormatError, "layers[1].layer must be above");
}

TEST(unfinished_packs_and_other_manifests_are_told_apart) {
  const test::Folder folder;
  CHECK(!read_manifest(folder.path()));
  folder.write("manifest.json", "{\"name\": \"a web app\"}");
  CHECK(!read_manifest(folder.path()));
  PackManifest manifest = sample();
  manifest.complete = false;
  manifest.dense = {};
  folder.write("manifest.json", write_manifest(manifest));
  CHECK_THROWS(read_manifest(folder.path()), FormatError, "this pack is unfinished (1 layers are written); run flash-moe pack again");
  CHECK(read_manifest(folder.path(), true)->layers.size() == 1);
}

TEST(pack_experts_must_be_those_of_the_config) {
  const auto place = [](const PackManifest& manifest, const ModelShape& shape) { return pack_expert_layers(manifest, shape, "p"); };
  const auto layers = place(sample(), sample_shape());
  CHECK(layers[0].expert_count == 0 && layers[1].expert_count == 2 && layers[1].parts[3].first.offset == 1280);
  CHECK(layers[1].parts[3].stride == 4096 && layers[1].parts[8].bytes == 128);
  ModelShape shape = sample_shape();
  shape.experts = 3;
  CHECK_THROWS(place(sample(), shape), FormatError, "layer 1 has 2 experts, wanted 3");
  shape = sample_shape();
  shape.hidden = 128;
  CHECK_THROWS(place(sample(), shape), FormatError, "gate is [32, 64], wanted [32, 128]");
  shape = sample_shape();
  shape.layers[0].is_moe = true;
  CHECK_THROWS(place(sample(), shape), FormatError, "the experts of layer 0 are missing");
  shape = sample_shape();
  shape.layers.resize(1);
  CHECK_THROWS(place(sample(), shape), FormatError, "has experts for layer 1, which config.json has no experts in");
}

TEST(pack_files_of_another_size_are_refused) {
  const test::Folder folder;
  folder.write("experts.01.pack", std::string(8191, 'x'));
  CHECK_THROWS(open_pack_files(sample(), folder.path()), FormatError, "has 8191 bytes, wanted 8192 as manifest.json states");
  folder.write("experts.01.pack", std::string(8192, 'x'));
  CHECK(open_pack_files(sample(), folder.path()).size() == 1);
}
