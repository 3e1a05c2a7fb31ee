#include "format/matrix_tensors.h"

#include <algorithm>
#include <utility>

#include "flash_moe/error.h"

namespace flash_moe::format {
namespace {

// Rows of quantised matrices are multiples of it: what the kernels are promised.
constexpr int64_t column_multiple = 32;

StatedFormat parse_stated(const JsonFields& fields) {
  StatedFormat stated;
  const std::string mode = fields.has("mode") ? fields.string("mode") : "affine";
  if (mode == "affine") {
    stated.format = MatrixFormat::affine;
  } else if (mode == "mxfp4") {
    stated.format = MatrixFormat::mxfp4;
  } else if (mode == "mxfp8") {
    stated.format = MatrixFormat::mxfp8;
  } else if (mode == "nvfp4") {
    stated.format = MatrixFormat::nvfp4;
  } else {
    fields.fail("mode", "is \"" + mode + "\" (supported: affine, mxfp4, mxfp8, nvfp4)");
  }
  stated.bits = fields.integer("bits", 1, 32);
  stated.group = fields.integer("group_size", 1, 65535);
  return stated;
}

void check_hugging_face(const JsonFields& fields) {
  const std::string& method = fields.string("quant_method");
  if (method != "fp8") {
    fields.fail("quant_method", "is \"" + method +
                                    "\", which is not supported (supported: fp8 in blocks of 128 x 128, and MLX's "
                                    "quantization)");
  }
  const Json::Array& block = fields.array("weight_block_size");
  const bool fits = block.size() == 2 && block[0].integer() && *block[0].integer() == fp8_block_size &&
                    block[1].integer() && *block[1].integer() == fp8_block_size;
  if (!fits) fields.fail("weight_block_size", "must be [128, 128]");
}

std::vector<int64_t> stacked(int64_t count, std::vector<int64_t> shape) {
  if (count > 0) shape.insert(shape.begin(), count);
  return shape;
}

[[noreturn]] void fail_tensor(const Checkpoint& checkpoint, const TensorInfo& info, const std::string& name,
                              const std::string& what) {
  throw FormatError(checkpoint.place_of(info) + ": tensor " + name + " " + what);
}

void check_columns(const Checkpoint& checkpoint, const TensorInfo& info, const std::string& name,
                   int64_t cols) {
  if (cols % column_multiple != 0) {
    fail_tensor(checkpoint, info, name, "is quantised and has " + std::to_string(cols) +
                                            " inputs; only multiples of 32 are supported");
  }
}

MatrixTensors fp8_matrix(const Checkpoint& checkpoint, const MatrixName& name, const TensorInfo& data,
                         int64_t rows, int64_t cols) {
  check_columns(checkpoint, data, name.data_tensor(), cols);
  const std::string scales_name = name.module + (name.bare ? "_scale_inv" : ".weight_scale_inv");
  MatrixTensors out;
  out.data = &checkpoint.need(name.data_tensor(), {Dtype::f8_e4m3}, stacked(name.count, {rows, cols}));
  out.scales = &checkpoint.need(
      scales_name, {Dtype::f32, Dtype::bf16, Dtype::f16},
      stacked(name.count, {(rows + fp8_block_size - 1) / fp8_block_size, (cols + fp8_block_size - 1) / fp8_block_size}));
  out.form.format = MatrixFormat::fp8_block;
  out.form.bits = 8;
  out.form.scale_dtype = out.scales->dtype;
  return out;
}

// Bits and group as the shapes prove them.
void prove_form(const Checkpoint& checkpoint, const std::string& data_name, MatrixTensors& out, int64_t cols) {
  const int64_t packed_bits = 32 * out.data->shape.back();
  const int64_t groups = out.scales->shape.empty() ? 0 : out.scales->shape.back();
  if (packed_bits % cols != 0 || groups < 1 || cols % groups != 0) {
    fail_tensor(checkpoint, *out.data, data_name,
                "of shape " + shape_text(out.data->shape) + " with scales " + shape_text(out.scales->shape) +
                    " is no quantisation of " + std::to_string(cols) + " inputs");
  }
  const int64_t bits = packed_bits / cols;
  const int64_t group = cols / groups;
  const auto one_of = [](int64_t value, std::initializer_list<int64_t> values) {
    return std::find(values.begin(), values.end(), value) != values.end();
  };
  const auto is = [&](int64_t want_bits, int64_t want_group) { return bits == want_bits && group == want_group; };
  bool known = true;
  if (out.scales->dtype != Dtype::u8) {
    out.form.format = MatrixFormat::affine;
    known = one_of(bits, {2, 3, 4, 5, 6, 8}) && one_of(group, {32, 64, 128});
  } else if (is(4, 32)) {
    out.form.format = MatrixFormat::mxfp4;
  } else if (is(8, 32)) {
    out.form.format = MatrixFormat::mxfp8;
  } else {
    out.form.format = MatrixFormat::nvfp4;
    known = is(4, 16);
  }
  if (!known) {
    fail_tensor(checkpoint, *out.data, data_name,
                "has " + std::to_string(bits) + " bits in groups of " + std::to_string(group) + " with " +
                    dtype_name(out.scales->dtype) +
                    " scales, which is not supported (supported: affine 2, 3, 4, 5, 6, 8 bits in groups of 32, 64, "
                    "128; mxfp4; mxfp8; nvfp4)");
  }
  out.form.bits = static_cast<uint8_t>(bits);
  out.form.group = static_cast<uint16_t>(group);
  out.form.scale_dtype = out.form.format == MatrixFormat::nvfp4 ? Dtype::f8_e4m3 : out.scales->dtype;
}

MatrixTensors mlx_matrix(const Checkpoint& checkpoint, const MatrixName& name, const TensorInfo& data,
                         int64_t rows, int64_t cols) {
  const std::string data_name = name.data_tensor();
  check_columns(checkpoint, data, data_name, cols);
  MatrixTensors out;
  out.data = &data;
  out.scales = checkpoint.find(name.module + ".scales");
  if (!out.scales) fail_tensor(checkpoint, data, data_name, "is U32 (quantised), but " + name.module + ".scales is missing");
  if (data.shape.empty()) fail_tensor(checkpoint, data, data_name, "has no dimensions");
  prove_form(checkpoint, data_name, out, cols);
  checkpoint.need(data_name, {Dtype::u32}, stacked(name.count, {rows, cols * out.form.bits / 32}));
  const std::vector<int64_t> scales_shape = stacked(name.count, {rows, cols / out.form.group});
  const bool affine = out.form.format == MatrixFormat::affine;
  checkpoint.need(name.module + ".scales",
                  affine ? std::vector<Dtype>{Dtype::f32, Dtype::f16, Dtype::bf16} : std::vector<Dtype>{Dtype::u8},
                  scales_shape);
  if (affine) out.biases = &checkpoint.need(name.module + ".biases", {out.scales->dtype}, scales_shape);
  return out;
}

std::string stated_text(const StatedFormat& stated) {
  if (!stated.quantised) return "not quantised";
  Matrix form;
  form.format = stated.format;
  form.bits = static_cast<uint8_t>(stated.bits);
  form.group = static_cast<uint16_t>(stated.group);
  return format_text(form);
}

// The module's own entry must hold; the default holds for whatever is quantised and has no entry.
void check_stated(const Checkpoint& checkpoint, const QuantisationConfig& config, const MatrixName& name,
                  const MatrixTensors& found) {
  const bool quantised = found.form.group != 0;
  const StatedFormat* stated = config.own(name.module);
  if (!stated && quantised) stated = config.fallback();
  if (!stated) return;
  const bool agrees = stated->quantised == quantised &&
                      (!quantised || (stated->format == found.form.format && stated->bits == found.form.bits &&
                                      stated->group == found.form.group));
  if (!agrees) {
    fail_tensor(checkpoint, *found.data, name.data_tensor(),
                "is " + format_text(found.form) + " by its shape, but config.json states " + stated_text(*stated));
  }
}

}  // namespace

QuantisationConfig::QuantisationConfig(const Json& config, const std::string& where) {
  const JsonFields root(config, where);
  const bool has_config = root.has("quantization_config");
  if (has_config && root.fields("quantization_config").has("quant_method")) {
    check_hugging_face(root.fields("quantization_config"));
  }
  const char* key = root.has("quantization") ? "quantization" : "quantization_config";
  if (!root.has(key) || root.fields(key).has("quant_method")) return;
  const JsonFields fields = root.fields(key);
  default_ = parse_stated(fields);
  for (const auto& [name, value] : *fields.value().object()) {
    if (value.object()) {
      modules_[name] = parse_stated(JsonFields(value, where, std::string(key) + "." + name));
    } else if (value.boolean() && !*value.boolean()) {
      modules_[name] = StatedFormat{.quantised = false};
    }
  }
}

const StatedFormat* QuantisationConfig::own(const std::string& module) const {
  const auto found = modules_.find(module);
  return found == modules_.end() ? nullptr : &found->second;
}

std::optional<MatrixTensors> find_matrix(const Checkpoint& checkpoint, const QuantisationConfig& config,
                                         const MatrixName& name, int64_t rows, int64_t cols) {
  const TensorInfo* data = checkpoint.find(name.data_tensor());
  if (!data) return std::nullopt;
  MatrixTensors out;
  if (data->dtype == Dtype::u32) {
    out = mlx_matrix(checkpoint, name, *data, rows, cols);
  } else if (data->dtype == Dtype::f8_e4m3) {
    out = fp8_matrix(checkpoint, name, *data, rows, cols);
  } else {
    out.data = &checkpoint.need(name.data_tensor(), {Dtype::bf16, Dtype::f16, Dtype::f32},
                                stacked(name.count, {rows, cols}));
    out.form.format = data->dtype == Dtype::bf16  ? MatrixFormat::bf16
                      : data->dtype == Dtype::f16 ? MatrixFormat::f16
                                                  : MatrixFormat::f32;
    out.form.bits = static_cast<uint8_t>(8 * dtype_bytes(data->dtype));
  }
  out.form.rows = rows;
  out.form.cols = cols;
  check_stated(checkpoint, config, name, out);
  return out;
}

std::string format_text(const Matrix& form) {
  switch (form.format) {
    case MatrixFormat::f32:
      return "f32";
    case MatrixFormat::f16:
      return "f16";
    case MatrixFormat::bf16:
      return "bf16";
    case MatrixFormat::fp8_block:
      return "fp8 128x128";
    case MatrixFormat::affine:
      return "affine " + std::to_string(form.bits) + "-bit g" + std::to_string(form.group);
    case MatrixFormat::mxfp4:
      return "mxfp4";
    case MatrixFormat::mxfp8:
      return "mxfp8";
    case MatrixFormat::nvfp4:
      return "nvfp4";
  }
  return "unknown";
}

}  // namespace flash_moe::format
