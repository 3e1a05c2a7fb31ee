#include "format/pack.h"
#include "fuzz.h"

using namespace flash_moe::format;

namespace {

PackManifest sample(flash_moe::MatrixFormat format, int bits, int group, flash_moe::Dtype scale) {
  flash_moe::Matrix form;
  form.format = format;
  form.bits = static_cast<uint8_t>(bits);
  form.group = static_cast<uint16_t>(group);
  form.scale_dtype = scale;
  form.rows = 64;
  form.cols = 64;
  PackManifest manifest;
  manifest.complete = true;
  manifest.source = Json::Object{{"format", "mlx"}};
  manifest.options = Json::Object{};
  manifest.dense = {"dense.safetensors", 12, 34};
  for (int64_t i = 0; i < 2; ++i) {
    PackLayer layer = layout_record({form, form, form});
    layer.layer = i;
    layer.file = "experts.pack";
    layer.checksums = {1, 2};
    manifest.layers.push_back(layer);
  }
  return manifest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run(data, size, [](std::string_view text) {
    const PackManifest manifest = parse_manifest(text, "manifest.json");
    const std::string written = write_manifest(manifest);
    fuzz::require(write_manifest(parse_manifest(written, "written")) == written, "writing and reading is stable");
    flash_moe::ModelShape shape;
    shape.hidden = 64;
    shape.moe_inner = 64;
    shape.experts = 2;
    shape.layers.resize(2);
    for (const ExpertLayer& layer : pack_expert_layers(manifest, shape, "folder")) {
      for (const ExpertPart& part : layer.parts) {
        fuzz::require(part.bytes == 0 || part.first.offset + part.bytes <= part.stride, "parts lie inside their record");
      }
    }
  });
}

std::vector<std::string> fuzz::seeds() {
  return {write_manifest(sample(flash_moe::MatrixFormat::affine, 4, 32, flash_moe::Dtype::bf16)),
          write_manifest(sample(flash_moe::MatrixFormat::bf16, 16, 0, flash_moe::Dtype::f32)),
          write_manifest(sample(flash_moe::MatrixFormat::nvfp4, 4, 16, flash_moe::Dtype::f8_e4m3)),
          write_manifest(sample(flash_moe::MatrixFormat::fp8_block, 8, 0, flash_moe::Dtype::bf16))};
}

std::vector<std::string> fuzz::words() {
  return {"0", "-1", "1", "64", "4096", "16777216", "4294967295", "\"affine\"", "\"mxfp4\"", "\"fp8_block\"", "\"U8\"", "false", "null", "[]",
          "{}", "\"../x\"", "9007199254740993", ","};
}
