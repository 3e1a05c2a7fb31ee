#include "model/weights_names.h"

#include <algorithm>
#include <charconv>
#include <span>
#include <string_view>
#include <utility>

#include "flash_moe/error.h"

namespace flash_moe::model {
namespace {

using format::Checkpoint;
using format::ExpertLayer;
using format::ExpertPart;
using format::MatrixName;
using format::MatrixTensors;
using format::TensorInfo;

constexpr size_t listed_names_max = 4;
constexpr const char* roles[] = {"gate_proj", "up_proj", "down_proj"};
constexpr std::string_view vision_prefixes[] = {"model.visual.", "visual.", "vision_tower.", "model.vision_tower."};
constexpr std::string_view mtp_prefixes[] = {"mtp.", "model.mtp.", "language_model.mtp.", "language_model.model.mtp."};

struct PartSource {
  const TensorInfo* tensor = nullptr;
  uint64_t bytes = 0;  // of one expert
};

std::array<PartSource, 3> sources_of(const MatrixTensors& tensors, const Matrix& form) {
  std::array<PartSource, 3> out{};
  out[0] = {tensors.data, static_cast<uint64_t>(form.data_bytes())};
  if (tensors.scales) out[1] = {tensors.scales, static_cast<uint64_t>(form.scales_bytes())};
  if (tensors.biases) out[2] = {tensors.biases, static_cast<uint64_t>(form.scales_bytes())};
  return out;
}

class ExpertPlanner {
 public:
  ExpertPlanner(const Checkpoint& checkpoint, const format::QuantisationConfig& quantisation,
                const ModelShape& shape, UsedTensors& used, std::vector<std::string>& missing)
      : checkpoint_(checkpoint), quantisation_(quantisation), shape_(shape), used_(used), missing_(missing) {
    layer_.expert_count = shape.experts;
  }

  ExpertLayer run(const std::string& prefix) {
    const std::string fused = prefix + "experts.gate_up_proj";
    const std::string single = prefix + "experts.0.gate_proj.weight";
    if (checkpoint_.find(fused)) {
      plan_fused(fused, prefix + "experts.down_proj");
    } else if (checkpoint_.find(single)) {
      plan_singles(prefix + "experts.");
    } else if (checkpoint_.find(prefix + "switch_mlp.gate_proj.weight")) {
      plan_stacked(prefix + "switch_mlp.");
    } else {
      missing_.push_back(fused + " (or " + single + ", or MLX's switch_mlp.gate_proj.weight)");
    }
    return std::move(layer_);
  }

 private:
  int64_t rows_of(size_t role) const { return role == 2 ? shape_.hidden : shape_.moe_inner; }
  int64_t cols_of(size_t role) const { return role == 2 ? shape_.moe_inner : shape_.hidden; }

  Matrix& form_of(size_t role) {
    return role == 0 ? layer_.forms.gate : role == 1 ? layer_.forms.up : layer_.forms.down;
  }

  std::optional<MatrixTensors> find(const MatrixName& name, int64_t rows, int64_t cols) {
    auto tensors = format::find_matrix(checkpoint_, quantisation_, name, rows, cols);
    if (!tensors) {
      missing_.push_back(name.data_tensor());
      return std::nullopt;
    }
    for (const TensorInfo* tensor : {tensors->data, tensors->scales, tensors->biases}) {
      if (tensor) used_.insert(tensor);
    }
    return tensors;
  }

  // Part of one role in tensors stacked over experts: rows [row_begin, row_begin + form.rows) of each.
  void stack(size_t role, const MatrixTensors& tensors, const Matrix& form, int64_t row_begin) {
    form_of(role) = form;
    const auto sources = sources_of(tensors, form);
    const auto whole = sources_of(tensors, tensors.form);
    // Where the rows begin inside each part: the address arithmetic of Matrix itself, on offsets.
    const int64_t scale_row = form.format == MatrixFormat::fp8_block ? row_begin / 128 : row_begin;
    const int64_t skip[3] = {row_begin * form.row_bytes(), scale_row * form.scale_row_bytes(),
                             scale_row * form.scale_row_bytes()};
    for (size_t part = 0; part < 3; ++part) {
      if (!sources[part].tensor) continue;
      ExpertPart& out = layer_.parts[role * 3 + part];
      out.bytes = sources[part].bytes;
      out.stride = whole[part].bytes;
      out.first = {sources[part].tensor->file, sources[part].tensor->offset + static_cast<uint64_t>(skip[part])};
    }
  }

  void plan_stacked(const std::string& prefix) {
    for (size_t role = 0; role < 3; ++role) {
      const auto tensors = find({prefix + roles[role], false, shape_.experts}, rows_of(role), cols_of(role));
      if (tensors) stack(role, *tensors, tensors->form, 0);
    }
  }

  void plan_fused(const std::string& gate_up_name, const std::string& down_name) {
    const int64_t inner = shape_.moe_inner;
    const auto gate_up = find({gate_up_name, true, shape_.experts}, 2 * inner, shape_.hidden);
    if (gate_up) {
      if (gate_up->form.format == MatrixFormat::fp8_block && inner % 128 != 0) {
        throw FormatError(checkpoint_.place_of(*gate_up->data) + ": tensor " + gate_up_name +
                          " is block-FP8 with moe_intermediate_size " + std::to_string(inner) +
                          "; fused experts need a multiple of 128");
      }
      Matrix half = gate_up->form;
      half.rows = inner;
      stack(0, *gate_up, half, 0);
      stack(1, *gate_up, half, inner);
    }
    const auto down = find({down_name, true, shape_.experts}, rows_of(2), cols_of(2));
    if (down) stack(2, *down, down->form, 0);
  }

  void plan_singles(const std::string& prefix) {
    for (int64_t expert = 0; expert < shape_.experts; ++expert) {
      for (size_t role = 0; role < 3; ++role) {
        const std::string module = prefix + std::to_string(expert) + "." + roles[role];
        const auto tensors = find({module}, rows_of(role), cols_of(role));
        if (tensors) add_single(role, expert, module, *tensors);
      }
    }
  }

  void add_single(size_t role, int64_t expert, const std::string& module, const MatrixTensors& tensors) {
    const Matrix& form = tensors.form;
    if (expert == 0) form_of(role) = form;
    const Matrix& first = form_of(role);
    if (form.format != first.format || form.bits != first.bits || form.group != first.group ||
        form.scale_dtype != first.scale_dtype) {
      throw FormatError(checkpoint_.place_of(*tensors.data) + ": " + module + " is " + format::format_text(form) +
                        " where expert 0 is " + format::format_text(first) +
                        "; the experts of a layer must have one format");
    }
    const auto sources = sources_of(tensors, form);
    for (size_t part = 0; part < 3; ++part) {
      if (!sources[part].tensor) continue;
      ExpertPart& out = layer_.parts[role * 3 + part];
      out.bytes = sources[part].bytes;
      out.places.resize(static_cast<size_t>(shape_.experts));
      out.places[static_cast<size_t>(expert)] = {sources[part].tensor->file, sources[part].tensor->offset};
    }
  }

  const Checkpoint& checkpoint_;
  const format::QuantisationConfig& quantisation_;
  const ModelShape& shape_;
  UsedTensors& used_;
  std::vector<std::string>& missing_;
  ExpertLayer layer_;
};

bool starts_with_any(std::string_view name, std::span<const std::string_view> prefixes, std::string_view* rest) {
  for (const std::string_view prefix : prefixes) {
    if (name.substr(0, prefix.size()) == prefix) {
      *rest = name.substr(prefix.size());
      return true;
    }
  }
  return false;
}

// The parts of the head that every release stores plainly; the rest is checked when the head is used.
void check_mtp(const Checkpoint& checkpoint, const ModelShape& shape, const std::string& name,
               std::string_view rest) {
  const std::vector<Dtype> floats = {Dtype::bf16, Dtype::f16, Dtype::f32};
  if (rest == "norm.weight" || rest == "pre_fc_norm_embedding.weight" || rest == "pre_fc_norm_hidden.weight") {
    checkpoint.need(name, floats, {shape.hidden});
  }
  const TensorInfo* tensor = checkpoint.find(name);
  if (rest == "fc.weight" && tensor->dtype != Dtype::u32 && tensor->dtype != Dtype::f8_e4m3) {
    checkpoint.need(name, floats, {shape.hidden, 2 * shape.hidden});
  }
}

int64_t mtp_layer_count(std::string_view rest) {
  constexpr std::string_view layers = "layers.";
  int64_t layer = -1;
  if (rest.substr(0, layers.size()) == layers) {
    std::from_chars(rest.data() + layers.size(), rest.data() + rest.size(), layer);
  }
  return layer + 1;
}

std::string tensors_are(size_t count) { return count == 1 ? "1 tensor is" : std::to_string(count) + " tensors are"; }

}  // namespace

std::string list_names(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), listed_names_max); ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > listed_names_max) {
    text += " and " + std::to_string(names.size() - listed_names_max) + " more";
  }
  return text;
}

TensorNames find_names(const Checkpoint& checkpoint) {
  TensorNames names{"model.", "lm_head"};
  for (const char* prefix : {"model.language_model.", "language_model.model."}) {
    if (checkpoint.find(std::string(prefix) + "embed_tokens.weight")) names.prefix = prefix;
  }
  if (checkpoint.find("language_model.lm_head.weight")) names.head = "language_model.lm_head";
  return names;
}

ExpertLayer plan_expert_layer(const Checkpoint& checkpoint, const format::QuantisationConfig& quantisation,
                              const ModelShape& shape, const std::string& prefix, UsedTensors& used,
                              std::vector<std::string>& missing) {
  return ExpertPlanner(checkpoint, quantisation, shape, used, missing).run(prefix);
}

OtherTensors classify_others(const Checkpoint& checkpoint, const UsedTensors& used, const ModelShape& shape,
                             std::vector<std::string> missing) {
  OtherTensors others;
  std::vector<std::string> unknown;
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (used.count(&info)) continue;
    std::string_view rest;
    if (starts_with_any(name, vision_prefixes, &rest)) {
      ++others.vision;
    } else if (starts_with_any(name, mtp_prefixes, &rest)) {
      check_mtp(checkpoint, shape, name, rest);
      ++others.mtp;
      others.mtp_layers = std::max(others.mtp_layers, mtp_layer_count(rest));
    } else if (name.find("rotary_emb.inv_freq") == std::string::npos) {
      unknown.push_back(name);
    }
  }
  const std::string where = checkpoint.files().front()->path();
  if (!missing.empty()) {
    throw FormatError(where + (checkpoint.files().size() > 1 ? " and its other shards: " : ": ") +
                      tensors_are(missing.size()) + " missing: " + list_names(missing) +
                      (unknown.empty() ? "" : "; not known: " + list_names(unknown)));
  }
  if (!unknown.empty()) {
    const std::string first = *std::min_element(unknown.begin(), unknown.end());
    throw FormatError(checkpoint.place_of(*checkpoint.find(first)) + ": " + tensors_are(unknown.size()) + " not known for " +
                      shape.architecture + ": " + list_names(unknown));
  }
  return others;
}

bool is_mlx_conv(const TensorInfo& tensor) {
  return tensor.shape.size() == 3 && tensor.shape[2] == 1 && tensor.shape[1] != 1;
}

bool norms_hold_one(const Checkpoint& checkpoint, const ModelShape& shape) {
  if (!shape.zero_centred_norm) return false;
  const TensorNames names = find_names(checkpoint);
  int64_t mlx = 0;
  int64_t all = 0;
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    const std::string name = names.prefix + "layers." + std::to_string(i) + ".linear_attn.conv1d.weight";
    const TensorInfo* tensor = checkpoint.find(name);
    if (!tensor) continue;
    ++all;
    mlx += is_mlx_conv(*tensor);
  }
  if (mlx != 0 && mlx != all) {
    throw FormatError(checkpoint.files().front()->path() + ": conv1d.weight is [channels, kernel, 1] in " +
                      std::to_string(mlx) + " of " + std::to_string(all) +
                      " layers and [channels, 1, kernel] in the others; wanted one convention");
  }
  // A model of full attention only, or with a kernel of one tap, shows nothing: the writer's mark decides.
  const bool decided = all > 0 && shape.conv_kernel > 1;
  return decided ? mlx > 0 : checkpoint.says_mlx();
}

}  // namespace flash_moe::model
