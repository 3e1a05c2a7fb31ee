#pragma once
// The state of one sequence in memory of both processors: as cpu_sequence.h, committed state and beside it what the steps
// since the last commit wrote. Included by Objective-C++ with ARC only.
//
// Key/value memory grows by blocks of positions: Metal would make address space for the whole context resident.

#include <memory>
#include <string>
#include <vector>

#include "backend/metal/metal_commands.h"

namespace flash_moe::backend {

class MetalSequence final : public Sequence {
 public:
  MetalSequence(std::shared_ptr<MetalCommands> commands, const ModelShape& shape, bool kv_is_bf16);

  int64_t position() const override { return position_; }
  uint64_t bytes() const override;
  void commit() override;
  void rollback() override;
  std::unique_ptr<Sequence> fork() const override;
  void visit(const Visitor& visitor) override;
  void resize(int64_t position) override;

  static uint64_t bytes_at(const ModelShape& shape, bool kv_is_bf16, int64_t position);

  // Room for `position` tokens; waits for the GPU where rows have to move.
  void reserve(int64_t position);

  // Cache of a full-attention layer: [reserved positions, kv_heads, head_dim] elements.
  MetalBuffer keys(int64_t layer) const { return layers_[static_cast<size_t>(layer)].keys; }
  MetalBuffer values(int64_t layer) const { return layers_[static_cast<size_t>(layer)].values; }

  // State of a linear-attention layer: what to read now, and what to write. After `mark_written` they are the same.
  MetalBuffer conv_read(int64_t layer) const;   // [conv_kernel - 1, channels], oldest row first
  MetalBuffer delta_read(int64_t layer) const;  // [v_heads, v_dim, k_dim]
  MetalBuffer conv_write(int64_t layer) const;
  MetalBuffer delta_write(int64_t layer) const;
  void mark_written(int64_t layer) { layers_[static_cast<size_t>(layer)].written = true; }

  void advance(int64_t rows) { position_ += rows; }

 private:
  struct Layer {
    MetalBuffer keys, values;
    MetalBuffer conv[2], delta[2];
    int committed = 0;     // which of the two
    bool written = false;  // the other one holds the newest state
  };

  std::shared_ptr<MetalCommands> commands_;
  const ModelShape shape_;
  const bool kv_is_bf16_;
  std::vector<Layer> layers_;
  int64_t reserved_ = 0;  // positions
  int64_t position_ = 0;
  int64_t committed_position_ = 0;
};

}  // namespace flash_moe::backend
