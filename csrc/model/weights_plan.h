#pragma once
// What a checkpoint's tensors become: each resident weight with its place in one block of memory, and each expert with
// its place on disk. Made from headers alone; weights_read.cpp carries it out.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/weights.h"
#include "base/shape.h"
#include "format/checkpoint.h"
#include "format/expert_map.h"
#include "format/matrix_tensors.h"

namespace flash_moe::model {

// Rows [begin, begin + count) of a tensor.
struct RowRun {
  int64_t begin = 0;
  int64_t count = 0;
};

// A stage is what a step needs before it can go on: 0 the embedding (and the final norm, which is small and tells models
// apart), i + 1 layer i, and the last one the head.

// A matrix that is copied as the file has it, rows possibly in another order.
struct MatrixJob {
  int64_t stage = 0;
  std::string name;  // of the data tensor
  format::MatrixTensors tensors;
  std::vector<RowRun> runs;  // which rows of the tensors, in order
  Matrix form;               // in memory; pointers null
  bool widen = false;        // fp8_block whose blocks the runs would cut: becomes f32 in memory
  std::array<uint64_t, 3> offsets{};  // of data, scales, biases in the block
  std::function<Matrix&(backend::ModelWeights&)> field;
};

// A small tensor that becomes f32.
struct VectorJob {
  enum class Change : uint8_t { none, plus_one, exponential, transpose };
  int64_t stage = 0;
  std::string name;
  const format::TensorInfo* tensor = nullptr;
  Change change = Change::none;
  int64_t columns = 0;  // transpose: [elements / columns, columns] becomes [columns, elements / columns]
  uint64_t offset = 0;
  std::function<const float*&(backend::ModelWeights&)> field;

  int64_t elements() const;
};

struct ResidentPlan {
  ModelShape shape;
  std::vector<MatrixJob> matrices;
  std::vector<VectorJob> vectors;
  uint64_t bytes = 0;  // of the block
  bool head_is_embedding = false;
  std::vector<uint64_t> layer_bytes;  // of each layer's own weights
  int64_t vision_tensors = 0;
  int64_t mtp_tensors = 0;

  int64_t stage_count() const { return shape.layer_count() + 2; }
};

struct ModelPlan {
  ResidentPlan resident;
  std::vector<format::ExpertLayer> experts;  // by layer; `files` are the checkpoint's
};

// Places every tensor of the checkpoint. FormatError names tensors that are missing, unknown, or of another shape or
// dtype than `shape` asks for; `shape.zero_centred_norm` is about these files (weights_names.h, norms_hold_one). `with_experts` false: a pack's dense file, where an expert's tensor is unknown.
ModelPlan plan_model(const format::Checkpoint& checkpoint, const format::QuantisationConfig& quantisation,
                     const ModelShape& shape, bool with_experts);

}  // namespace flash_moe::model
