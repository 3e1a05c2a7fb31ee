#include "model/weights.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "flash_moe/error.h"
#include "format/pack.h"
#include "model/shape.h"
#include "model/weights_names.h"
#include "model/weights_read.h"

namespace flash_moe::model {
namespace {

namespace fs = std::filesystem;

// Distinct formats, in order of appearance.
std::string formats_text(const std::vector<const Matrix*>& forms) {
  std::vector<std::string> texts;
  for (const Matrix* form : forms) {
    const std::string text = format::format_text(*form);
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
  }
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : ", ") + text;
  return out;
}

std::string mixer_text(const ResidentPlan& plan, size_t layer) {
  const std::string part = "layers." + std::to_string(layer) + ".";
  std::vector<const Matrix*> forms;
  for (const MatrixJob& job : plan.matrices) {
    const size_t at = job.name.find(part);
    // "layers.1." also ends "xlayers.1."; no tensor is named so, and a prefix always ends in a dot.
    if (at == std::string::npos) continue;
    if (job.name.compare(at + part.size(), 4, "mlp.") != 0) forms.push_back(&job.form);
  }
  return formats_text(forms);
}

format::Json read_config(const std::string& path) {
  return format::parse_json(format::read_text_file(path), path, {.depth = 64, .non_finite = true});
}

void need_folder(const std::string& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw ConfigError("model folder " + folder + (fs::exists(folder, error) ? " is not a folder" : " does not exist") +
                      " (wanted a folder with config.json and *.safetensors)");
  }
  if (!fs::exists(folder + "/config.json", error)) {
    throw ConfigError("model folder " + folder + " has no config.json (is the download complete?)");
  }
}

}  // namespace

std::unique_ptr<ModelFiles> ModelFiles::open(const std::string& folder) {
  const auto manifest = format::read_manifest(folder);
  need_folder(folder);
  const std::string config_path = folder + "/config.json";
  const format::Json config = read_config(config_path);
  ModelShape shape = shape_from_config(config, config_path);
  std::unique_ptr<ModelFiles> files(new ModelFiles);
  if (manifest) {
    files->checkpoint_ =
        std::make_unique<format::Checkpoint>(format::Checkpoint::single_file(folder + "/" + manifest->dense.file));
  } else {
    files->checkpoint_ = std::make_unique<format::Checkpoint>(folder);
  }
  const format::Checkpoint& checkpoint = *files->checkpoint_;
  if (norms_hold_one(checkpoint, shape)) shape.zero_centred_norm = false;
  // A pack may have been requantised: its own manifest, not the source's config, speaks for it.
  const format::QuantisationConfig quantisation =
      manifest ? format::QuantisationConfig() : format::QuantisationConfig(config, config_path);
  ModelPlan plan = plan_model(checkpoint, quantisation, shape, !manifest);
  files->plan_ = std::move(plan.resident);
  if (manifest) plan.experts = format::pack_expert_layers(*manifest, shape, folder);
  for (const format::ExpertLayer& layer : plan.experts) files->expert_forms_.push_back(layer.forms);
  files->experts_ = format::make_expert_map(manifest ? format::open_pack_files(*manifest, folder) : checkpoint.files(),
                                            std::move(plan.experts));
  const bool mlx = checkpoint.says_mlx() || quantisation.states_mlx();
  files->summarise(folder, manifest ? "pack" : mlx ? "mlx" : "safetensors");
  return files;
}

void ModelFiles::summarise(const std::string& folder, const std::string& format) {
  summary_.path = folder;
  summary_.format = format;
  summary_.vision_tensors = plan_.vision_tensors;
  summary_.mtp_tensors = plan_.mtp_tensors;
  summary_.resident_bytes = plan_.bytes;
  summary_.slot_bytes = experts_->slot_bytes();
  bool mixed = false;
  for (int64_t i = 0; i < plan_.shape.layer_count(); ++i) {
    const auto index = static_cast<size_t>(i);
    LayerSummary layer;
    layer.full_attention = plan_.shape.layers[index].mixer == MixerKind::full_attention;
    layer.is_moe = plan_.shape.layers[index].is_moe;
    layer.mixer_format = mixer_text(plan_, index);
    layer.resident_bytes = plan_.layer_bytes[index];
    layer.experts = experts_->expert_count(i);
    if (layer.experts > 0) {
      const ExpertMatrices& forms = expert_forms_[index];
      layer.experts_format = formats_text({&forms.gate, &forms.up, &forms.down});
      layer.expert_bytes = experts_->expert_bytes(i);
      const auto weight_count = static_cast<double>(3 * plan_.shape.moe_inner * plan_.shape.hidden);
      layer.expert_bits = 8.0 * static_cast<double>(layer.expert_bytes) / weight_count;
      summary_.expert_bytes = std::max(summary_.expert_bytes, layer.expert_bytes);
      summary_.experts_bytes += layer.expert_bytes * static_cast<uint64_t>(layer.experts);
      if (summary_.quantisation.empty()) summary_.quantisation = layer.experts_format;
      mixed = mixed || summary_.quantisation != layer.experts_format;
    }
    summary_.layers.push_back(std::move(layer));
  }
  if (mixed) summary_.quantisation += " (mixed)";
}

LoadedWeights ModelFiles::start_load(const Allocate& allocate, int thread_count) const {
  LoadedWeights out;
  out.memory = allocate(plan_.bytes);
  FM_CHECK(out.memory && out.memory->bytes() >= plan_.bytes);
  out.weights = resident_views(plan_, out.memory->data());
  out.load = std::make_unique<ResidentLoad>(read_tasks(plan_, checkpoint_->files(), out.memory->data()),
                                            plan_.stage_count(), thread_count);
  return out;
}

LoadedWeights ModelFiles::load(const Allocate& allocate, const ByteProgress& progress) const {
  LoadedWeights out = start_load(allocate);
  out.load->wait_all(progress);
  return out;
}

}  // namespace flash_moe::model
