#pragma once
// A model folder: Hugging Face safetensors, an MLX conversion, or a pack. Opening reads headers only; loading fills
// memory that a backend allocated.
//
//   auto files = model::ModelFiles::open("models/Qwen3.5-35B-A3B-4bit");
//   auto loaded = files->start_load([&](size_t bytes) { return backend->allocate(bytes); });
//   backend->set_weights(loaded.weights);  // after set_shape
//   loaded.load->wait_all(progress);       // or stage by stage, as Forward does
//   store::ExpertStore store(files->experts(), ...);

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/weights.h"
#include "format/expert_map.h"
#include "model/weights_load.h"
#include "model/weights_plan.h"

namespace flash_moe::model {

struct LayerSummary {
  bool full_attention = false;
  bool is_moe = false;
  std::string mixer_format;       // of its projections: "bf16", or "affine 8-bit g64, affine 4-bit g64"
  std::string experts_format;     // of gate, up and down; empty for a dense layer
  double expert_bits = 0;         // a weight of its experts, scales and biases included
  uint64_t resident_bytes = 0;    // this layer's dense weights
  uint64_t expert_bytes = 0;      // one expert
  int64_t experts = 0;
};

// What `info` and `plan` need, from headers alone.
struct ModelSummary {
  std::string path;
  std::string format;        // "safetensors", "mlx" or "pack"
  std::string quantisation;  // of the experts; of the first MoE layer where layers differ, and then "(mixed)"
  int64_t vision_tensors = 0;  // skipped
  int64_t mtp_tensors = 0;     // skipped
  uint64_t resident_bytes = 0;
  uint64_t expert_bytes = 0;   // the largest expert
  uint64_t experts_bytes = 0;  // all of them
  uint64_t slot_bytes = 0;
  std::vector<LayerSummary> layers;
};

using Allocate = std::function<std::unique_ptr<backend::DeviceMemory>(size_t bytes)>;

// The ModelFiles outlive it.
struct LoadedWeights {
  backend::ModelWeights weights;                  // views into `memory`, right where `load` is ready
  std::unique_ptr<backend::DeviceMemory> memory;  // outlives every use of `weights`
  std::unique_ptr<ResidentLoad> load;
};

// Thread-compatible; may be loaded more than once.
class ModelFiles {
 public:
  // Throws ConfigError for a folder that is none, FormatError naming the file, field or tensor, IoError.
  static std::unique_ptr<ModelFiles> open(const std::string& folder);

  const ModelShape& shape() const { return plan_.shape; }
  const ModelSummary& summary() const { return summary_; }
  // Its files are the ones to set faults on, and those that stay open while the engine runs.
  std::shared_ptr<const format::ExpertMap> experts() const { return experts_; }
  // Files of the dense weights (the same ones, but for a pack).
  const std::vector<std::shared_ptr<io::File>>& dense_files() const { return checkpoint_->files(); }
  // Formats of a layer's experts, pointers null.
  const ExpertMatrices& expert_forms(int64_t layer) const { return expert_forms_[static_cast<size_t>(layer)]; }
  const ResidentPlan& resident_plan() const { return plan_; }
  const format::Checkpoint& checkpoint() const { return *checkpoint_; }

  LoadedWeights start_load(const Allocate& allocate, int thread_count = 4) const;
  // Returns when all is read. Throws IoError, FormatError, CancelledError; then no thread of the load is left.
  LoadedWeights load(const Allocate& allocate, const ByteProgress& progress = nullptr) const;

 private:
  ModelFiles() = default;
  void summarise(const std::string& folder, const std::string& format);

  std::unique_ptr<format::Checkpoint> checkpoint_;  // plan_ points into it
  ResidentPlan plan_;
  std::vector<ExpertMatrices> expert_forms_;  // by layer, pointers null
  std::shared_ptr<const format::ExpertMap> experts_;
  ModelSummary summary_;
};

}  // namespace flash_moe::model
