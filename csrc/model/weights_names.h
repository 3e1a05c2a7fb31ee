#pragma once
// Tensor names: the prefixes that exports differ in, the experts' layouts, and what stands beside the text model.

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/shape.h"
#include "format/checkpoint.h"
#include "format/expert_map.h"
#include "format/matrix_tensors.h"

namespace flash_moe::model {

struct TensorNames {
  std::string prefix;  // before "embed_tokens", "layers.N." and "norm"
  std::string head;    // module of the output head
};

using UsedTensors = std::unordered_set<const format::TensorInfo*>;

// By where the embedding is; the Hugging Face text-only names when it is nowhere.
TensorNames find_names(const format::Checkpoint& checkpoint);

// Places of one layer's experts. `prefix` ends in "mlp.". Appends names of absent tensors to `missing`.
format::ExpertLayer plan_expert_layer(const format::Checkpoint& checkpoint,
                                      const format::QuantisationConfig& quantisation, const ModelShape& shape,
                                      const std::string& prefix, UsedTensors& used,
                                      std::vector<std::string>& missing);

// What is left when the text model has what it needs.
struct OtherTensors {
  int64_t vision = 0;
  int64_t mtp = 0;
  int64_t mtp_layers = 0;
};

// FormatError when tensors are missing, or when one is neither used nor known.
OtherTensors classify_others(const format::Checkpoint& checkpoint, const UsedTensors& used,
                             const ModelShape& shape, std::vector<std::string> missing);

// [channels, kernel, 1] rather than Hugging Face's [channels, 1, kernel].
bool is_mlx_conv(const format::TensorInfo& tensor);

// True when the folder's norms already hold 1 + w. Decided by the convolutions' shape, which MLX's own loader goes by:
// its converter adds the 1 and moves their axis in one step. False for models without convolutions, whose norms have one convention only.
// FormatError when layers disagree.
bool norms_hold_one(const format::Checkpoint& checkpoint, const ModelShape& shape);

// The first few names and how many more.
std::string list_names(std::vector<std::string> names);

}  // namespace flash_moe::model
