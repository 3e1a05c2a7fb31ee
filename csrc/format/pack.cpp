#include "format/pack.h"

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <system_error>
#include <utility>

#include "flash_moe/error.h"
#include "format/checkpoint.h"
#include "format/matrix_tensors.h"

namespace flash_moe::format {
namespace {

namespace fs = std::filesystem;

constexpr const char* format_mark = "flash-moe pack";
constexpr int64_t dimension_max = 1 << 24;
constexpr int64_t file_bytes_max = int64_t{1} << 50;

struct FormatName {
  const char* name;
  MatrixFormat format;
};
constexpr FormatName format_names[] = {
    {"f32", MatrixFormat::f32},       {"f16", MatrixFormat::f16},       {"bf16", MatrixFormat::bf16},
    {"fp8_block", MatrixFormat::fp8_block}, {"affine", MatrixFormat::affine}, {"mxfp4", MatrixFormat::mxfp4},
    {"mxfp8", MatrixFormat::mxfp8},   {"nvfp4", MatrixFormat::nvfp4}};

bool one_of(int64_t value, std::initializer_list<int64_t> values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

bool is_float(Dtype dtype) { return dtype == Dtype::f32 || dtype == Dtype::f16 || dtype == Dtype::bf16; }

// Bits, group and scales that belong to the format, as a checkpoint's would have to.
bool form_is_valid(const Matrix& form) {
  const auto is = [&](int bits, int group) { return form.bits == bits && form.group == group; };
  const bool blocks_fit = form.cols % 32 == 0;
  switch (form.format) {
    case MatrixFormat::f32:
      return is(32, 0);
    case MatrixFormat::f16:
    case MatrixFormat::bf16:
      return is(16, 0);
    case MatrixFormat::fp8_block:
      return blocks_fit && is(8, 0) && is_float(form.scale_dtype);
    case MatrixFormat::affine:
      return blocks_fit && one_of(form.bits, {2, 3, 4, 5, 6, 8}) && one_of(form.group, {32, 64, 128}) &&
             form.cols % form.group == 0 && is_float(form.scale_dtype);
    case MatrixFormat::mxfp4:
      return blocks_fit && is(4, 32) && form.scale_dtype == Dtype::u8;
    case MatrixFormat::mxfp8:
      return blocks_fit && is(8, 32) && form.scale_dtype == Dtype::u8;
    case MatrixFormat::nvfp4:
      return blocks_fit && is(4, 16) && form.scale_dtype == Dtype::f8_e4m3;
  }
  return false;
}

Dtype parse_scale_dtype(const JsonFields& fields) {
  const std::string& name = fields.string("scale_dtype");
  for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::u8, Dtype::f8_e4m3}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fields.fail("scale_dtype", "is \"" + name + "\" (known: F32 F16 BF16 U8 F8_E4M3)");
}

SlotMatrix parse_matrix(const JsonFields& fields) {
  SlotMatrix matrix;
  const std::string& name = fields.string("format");
  const auto* known = std::find_if(std::begin(format_names), std::end(format_names),
                                   [&](const FormatName& candidate) { return name == candidate.name; });
  if (known == std::end(format_names)) fields.fail("format", "is \"" + name + "\", which is not known");
  matrix.form.format = known->format;
  matrix.form.bits = static_cast<uint8_t>(fields.integer("bits", 1, 32));
  matrix.form.group = static_cast<uint16_t>(fields.integer("group", 0, 128));
  matrix.form.scale_dtype = parse_scale_dtype(fields);
  matrix.form.rows = fields.integer("rows", 1, dimension_max);
  matrix.form.cols = fields.integer("cols", 1, dimension_max);
  if (!form_is_valid(matrix.form)) {
    fields.fail("bits", "and group do not belong to format " + name + " with " +
                            std::to_string(matrix.form.cols) + " columns");
  }
  const auto offset = [&](const char* key) {
    return static_cast<uint64_t>(fields.integer(key, 0, file_bytes_max));
  };
  matrix.data_offset = offset("data_offset");
  matrix.scales_offset = offset("scales_offset");
  matrix.biases_offset = offset("biases_offset");
  return matrix;
}

// A name in the folder itself: a manifest must not make us read elsewhere.
std::string parse_file_name(const JsonFields& fields) {
  const std::string& name = fields.string("file");
  if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..") {
    fields.fail("file", "must be the name of a file in the folder");
  }
  return name;
}

void check_layout(const JsonFields& fields, const PackLayer& layer) {
  const PackLayer wanted = layout_record({layer.gate.form, layer.up.form, layer.down.form});
  const auto same = [](const SlotMatrix& a, const SlotMatrix& b) {
    return a.data_offset == b.data_offset && a.scales_offset == b.scales_offset &&
           a.biases_offset == b.biases_offset;
  };
  if (layer.record_bytes != wanted.record_bytes) {
    fields.fail("record_bytes", "is " + std::to_string(layer.record_bytes) + ", but its matrices make " +
                                    std::to_string(wanted.record_bytes));
  }
  if (!same(layer.gate, wanted.gate)) fields.fail("gate", "has other offsets than the format lays down");
  if (!same(layer.up, wanted.up)) fields.fail("up", "has other offsets than the format lays down");
  if (!same(layer.down, wanted.down)) fields.fail("down", "has other offsets than the format lays down");
}

PackLayer parse_layer(const JsonFields& fields) {
  PackLayer layer;
  layer.layer = fields.integer("layer", 0, 4095);
  layer.file = parse_file_name(fields);
  layer.record_bytes = static_cast<uint64_t>(fields.integer("record_bytes", 1, file_bytes_max));
  layer.gate = parse_matrix(fields.fields("gate"));
  layer.up = parse_matrix(fields.fields("up"));
  layer.down = parse_matrix(fields.fields("down"));
  check_layout(fields, layer);
  for (const Json& item : fields.array("checksums")) {
    if (!item.integer() || *item.integer() < 0 || *item.integer() > UINT32_MAX) {
      fields.fail("checksums", "holds something else than unsigned 32-bit integers");
    }
    layer.checksums.push_back(static_cast<uint32_t>(*item.integer()));
  }
  if (layer.checksums.empty()) fields.fail("checksums", "is empty: a layer has experts");
  return layer;
}

Json matrix_json(const SlotMatrix& matrix) {
  const auto* known = std::find_if(std::begin(format_names), std::end(format_names), [&](const FormatName& name) {
    return name.format == matrix.form.format;
  });
  return Json::Object{{"format", known->name},
                      {"bits", int64_t{matrix.form.bits}},
                      {"group", int64_t{matrix.form.group}},
                      {"scale_dtype", dtype_name(matrix.form.scale_dtype)},
                      {"rows", matrix.form.rows},
                      {"cols", matrix.form.cols},
                      {"data_offset", static_cast<int64_t>(matrix.data_offset)},
                      {"scales_offset", static_cast<int64_t>(matrix.scales_offset)},
                      {"biases_offset", static_cast<int64_t>(matrix.biases_offset)}};
}

Json layer_json(const PackLayer& layer) {
  Json::Array checksums;
  for (const uint32_t checksum : layer.checksums) checksums.emplace_back(int64_t{checksum});
  return Json::Object{{"layer", layer.layer},
                      {"file", layer.file},
                      {"record_bytes", static_cast<int64_t>(layer.record_bytes)},
                      {"gate", matrix_json(layer.gate)},
                      {"up", matrix_json(layer.up)},
                      {"down", matrix_json(layer.down)},
                      {"checksums", std::move(checksums)}};
}

void check_form(const std::string& where, const PackLayer& layer, const char* role, const Matrix& form,
                int64_t rows, int64_t cols) {
  if (form.rows == rows && form.cols == cols) return;
  throw FormatError(where + ": layer " + std::to_string(layer.layer) + " " + role + " is [" +
                    std::to_string(form.rows) + ", " + std::to_string(form.cols) + "], wanted [" +
                    std::to_string(rows) + ", " + std::to_string(cols) + "] as config.json has it");
}

ExpertLayer expert_layer(const PackLayer& layer, uint32_t file) {
  ExpertLayer out;
  out.expert_count = static_cast<int64_t>(layer.checksums.size());
  out.forms = {layer.gate.form, layer.up.form, layer.down.form};
  size_t part = 0;
  for (const SlotMatrix* matrix : {&layer.gate, &layer.up, &layer.down}) {
    const auto scales_bytes = static_cast<uint64_t>(matrix->form.scales_bytes());
    const uint64_t biases_bytes = matrix->form.format == MatrixFormat::affine ? scales_bytes : 0;
    out.parts[part++] = {static_cast<uint64_t>(matrix->form.data_bytes()), {file, matrix->data_offset},
                         layer.record_bytes, {}};
    out.parts[part++] = {scales_bytes, {file, matrix->scales_offset}, layer.record_bytes, {}};
    out.parts[part++] = {biases_bytes, {file, matrix->biases_offset}, layer.record_bytes, {}};
  }
  return out;
}

}  // namespace

PackLayer layout_record(const ExpertMatrices& forms) {
  PackLayer layer;
  uint64_t cursor = 0;
  const auto place = [&](int64_t bytes) {
    const uint64_t offset = cursor;
    cursor += (static_cast<uint64_t>(bytes) + part_alignment - 1) / part_alignment * part_alignment;
    return bytes == 0 ? 0 : offset;
  };
  const std::pair<SlotMatrix*, const Matrix*> matrices[] = {
      {&layer.gate, &forms.gate}, {&layer.up, &forms.up}, {&layer.down, &forms.down}};
  for (const auto& [matrix, form] : matrices) {
    matrix->form = *form;
    matrix->data_offset = place(form->data_bytes());
    matrix->scales_offset = place(form->scales_bytes());
    matrix->biases_offset = form->format == MatrixFormat::affine ? place(form->scales_bytes()) : 0;
  }
  layer.record_bytes = (cursor + record_alignment - 1) / record_alignment * record_alignment;
  return layer;
}

PackManifest parse_manifest(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  const JsonFields fields(json, where);
  if (fields.string("format") != format_mark) fields.fail("format", std::string("is not \"") + format_mark + "\"");
  const int64_t version = fields.integer("version", 1, INT64_MAX);
  if (version != pack_version) {
    fields.fail("version", "is " + std::to_string(version) + "; this flash-moe reads version " +
                               std::to_string(pack_version) + " (upgrade flash-moe, or pack again)");
  }
  PackManifest manifest;
  manifest.complete = fields.boolean("complete");
  manifest.source = fields.fields("source").value();
  manifest.options = fields.fields("options").value();
  if (fields.has("dense")) {
    const JsonFields dense = fields.fields("dense");
    manifest.dense.file = parse_file_name(dense);
    manifest.dense.bytes = static_cast<uint64_t>(dense.integer("bytes", 1, file_bytes_max));
    manifest.dense.checksum = static_cast<uint32_t>(dense.integer("checksum", 0, UINT32_MAX));
  } else if (manifest.complete) {
    fields.fail("dense", "is missing from a complete pack");
  }
  const Json::Array& layers = fields.array("layers");
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string path = "layers[" + std::to_string(i) + "]";
    manifest.layers.push_back(parse_layer(JsonFields(layers[i], where, path)));
    if (i > 0 && manifest.layers[i].layer <= manifest.layers[i - 1].layer) {
      fields.fail(path + ".layer", "must be above the layer before");
    }
  }
  return manifest;
}

std::string write_manifest(const PackManifest& manifest) {
  Json::Array layers;
  for (const PackLayer& layer : manifest.layers) layers.push_back(layer_json(layer));
  Json dense;
  if (!manifest.dense.file.empty()) {
    dense = Json::Object{{"file", manifest.dense.file},
                         {"bytes", static_cast<int64_t>(manifest.dense.bytes)},
                         {"checksum", int64_t{manifest.dense.checksum}}};
  }
  return write_json(Json::Object{{"format", format_mark},
                                 {"version", pack_version},
                                 {"complete", manifest.complete},
                                 {"source", manifest.source},
                                 {"options", manifest.options},
                                 {"dense", std::move(dense)},
                                 {"layers", std::move(layers)}});
}

std::optional<PackManifest> read_manifest(const std::string& folder, bool unfinished) {
  const std::string path = folder + "/" + manifest_name;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;
  const std::string text = read_text_file(path);
  // Other tools write files of this name too.
  if (text.find(format_mark) == std::string::npos) return std::nullopt;
  PackManifest manifest = parse_manifest(text, path);
  if (!manifest.complete && !unfinished) {
    throw FormatError(path + ": this pack is unfinished (" + std::to_string(manifest.layers.size()) +
                      " layers are written); run flash-moe pack again to resume it");
  }
  return manifest;
}

std::vector<ExpertLayer> pack_expert_layers(const PackManifest& manifest, const ModelShape& shape,
                                            const std::string& folder) {
  const std::string where = folder + "/" + manifest_name;
  std::vector<ExpertLayer> out(shape.layers.size());
  for (size_t i = 0; i < manifest.layers.size(); ++i) {
    const PackLayer& layer = manifest.layers[i];
    if (layer.layer >= shape.layer_count() || !shape.layers[static_cast<size_t>(layer.layer)].is_moe) {
      throw FormatError(where + ": has experts for layer " + std::to_string(layer.layer) +
                        ", which config.json has no experts in");
    }
    if (static_cast<int64_t>(layer.checksums.size()) != shape.experts) {
      throw FormatError(where + ": layer " + std::to_string(layer.layer) + " has " +
                        std::to_string(layer.checksums.size()) + " experts, wanted " +
                        std::to_string(shape.experts) + " as config.json has it");
    }
    check_form(where, layer, "gate", layer.gate.form, shape.moe_inner, shape.hidden);
    check_form(where, layer, "up", layer.up.form, shape.moe_inner, shape.hidden);
    check_form(where, layer, "down", layer.down.form, shape.hidden, shape.moe_inner);
    out[static_cast<size_t>(layer.layer)] = expert_layer(layer, static_cast<uint32_t>(i));
  }
  for (size_t i = 0; i < out.size(); ++i) {
    if (shape.layers[i].is_moe && out[i].expert_count == 0) {
      throw FormatError(where + ": the experts of layer " + std::to_string(i) + " are missing");
    }
  }
  return out;
}

std::vector<std::shared_ptr<io::File>> open_pack_files(const PackManifest& manifest, const std::string& folder) {
  std::vector<std::shared_ptr<io::File>> files;
  for (const PackLayer& layer : manifest.layers) {
    files.push_back(std::make_shared<io::File>(folder + "/" + layer.file));
    const uint64_t wanted = layer.checksums.size() * layer.record_bytes;
    if (files.back()->size_bytes() != wanted) {
      throw FormatError(files.back()->path() + ": has " + std::to_string(files.back()->size_bytes()) +
                        " bytes, wanted " + std::to_string(wanted) + " as " + manifest_name +
                        " states (is the copy complete?)");
    }
  }
  return files;
}

}  // namespace flash_moe::format
