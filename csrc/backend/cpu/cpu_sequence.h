#pragma once
// The state of one sequence in host memory: committed state and, beside it, what the steps since the last commit wrote.

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_memory.h"

namespace flash_moe::backend {

// Key/value rows are appended behind the committed position, so rolling back only moves the position. Recurrent state is
// kept twice: a step reads the committed copy (or, later in the same feed, the working one) and writes the working copy.
class CpuSequence final : public Sequence {
 public:
  CpuSequence(const ModelShape& shape, bool kv_is_bf16);

  int64_t position() const override { return position_; }
  uint64_t bytes() const override { return bytes_at(shape_, kv_is_bf16_, kv_rows_max_); }
  void commit() override;
  void rollback() override;
  std::unique_ptr<Sequence> fork() const override;
  void visit(const Visitor& visitor) override;
  void resize(int64_t position) override;

  static uint64_t bytes_at(const ModelShape& shape, bool kv_is_bf16, int64_t position);
  // Of the states of the delta rule of all layers, once each.
  static uint64_t delta_bytes(const ModelShape& shape);

  // Cache of a full-attention layer: [context, kv_heads, head_dim] elements, rows below position() written.
  uint8_t* keys(int64_t layer) { return layers_[static_cast<size_t>(layer)].keys->data(); }
  uint8_t* values(int64_t layer) { return layers_[static_cast<size_t>(layer)].values->data(); }
  bool kv_is_bf16() const { return kv_is_bf16_; }

  // State of a linear-attention layer: what to read now, and what to write. After `mark_written` they are the same.
  const float* conv_read(int64_t layer) const;   // [conv_kernel - 1, channels], oldest row first
  const float* delta_read(int64_t layer) const;  // [v_heads, v_dim, k_dim]
  float* conv_write(int64_t layer);
  float* delta_write(int64_t layer);
  void mark_written(int64_t layer) { layers_[static_cast<size_t>(layer)].written = true; }

  void advance(int64_t rows);
  void note_rows(int64_t rows);  // rows of key/value memory touched, for bytes()

 private:
  struct Layer {
    std::unique_ptr<AlignedMemory> keys, values;
    std::unique_ptr<AlignedMemory> conv[2], delta[2];
    int committed = 0;     // which of the two
    bool written = false;  // the other one holds the newest state
  };

  const ModelShape& shape_;
  bool kv_is_bf16_;
  std::vector<Layer> layers_;
  int64_t position_ = 0;
  int64_t committed_position_ = 0;
  int64_t kv_rows_max_ = 0;
};

}  // namespace flash_moe::backend
