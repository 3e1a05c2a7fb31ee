#pragma once
// The backend that runs on cores: layer operations over kernels::Kernels, split by output rows over a few threads.
//
// DESIGN. Rows pass a mixer in blocks of at most kBlockRows, so that its temporaries do not grow with the step; what grows
// with it is the residual stream, the experts' input and their outputs (step_bytes). A result element is computed
// whole by one thread through one kernel call, so neither blocks nor threads show in the bits.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_sequence.h"
#include "backend/cpu/scratch.h"
#include "backend/create.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace flash_moe::backend {

// One matrix product of a group that runs together.
struct Product {
  Matrix matrix;
  const uint8_t* x = nullptr;       // prepared rows of matrix.cols inputs
  const int32_t* x_rows = nullptr;  // as in kernels::MatmulArgs
  int64_t row_count = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  std::string description() const override;
  std::unique_ptr<DeviceMemory> allocate(size_t bytes) override;
  std::unique_ptr<SlotArena> allocate_slots(size_t slot_bytes, size_t slot_count) override;
  void set_shape(const ModelShape& shape, int64_t experts_per_token) override;
  void set_weights(const ModelWeights& weights) override;
  std::unique_ptr<Sequence> new_sequence() override;
  uint64_t sequence_bytes(int64_t position) const override;
  uint64_t step_bytes(int64_t row_count) const override;
  void trim_step(int64_t row_count) override;

  void begin(const Step& step) override;
  void mixer(int64_t layer) override;
  void route(int64_t layer, Routes& routes) override;
  void guess_routes(int64_t layer, Routes& routes) override;
  void shared_expert(int64_t layer) override;
  void experts(int64_t layer, const Routes& routes, std::span<const ExpertWork> work) override;
  void wait_experts() override {}  // nothing is deferred: experts() has read its slots when it returns
  bool experts_done() const override { return true; }
  void combine(int64_t layer, const Routes& routes) override;
  void dense_mlp(int64_t layer) override;
  void logits(std::span<const int32_t> rows, float* out) override;
  void end() override;

 private:
  static constexpr int64_t kBlockRows = 256;

  // Rows [begin, begin + count) of the step, all of one sequence; `position` of the first.
  struct Block {
    CpuSequence* sequence;
    int64_t begin;
    int64_t count;
    int64_t position;
  };
  // Consecutive blocks, at most kBlockRows rows together, whose products are computed as one.
  struct Pass {
    int64_t begin;
    int64_t count;
    std::span<const Block> blocks;
  };
  // Assignments of one expert, at most kBlockRows of them.
  struct ExpertRows {
    ExpertMatrices matrices;
    std::span<const int32_t> assignments;
    int64_t output_begin;  // row of expert_out_
    int64_t inner_begin;   // row of the group's inner buffers
  };

  void multiply(std::span<const Product> products);
  void normalise_and_prepare(const float* weight, int64_t row_begin, int64_t row_count, uint8_t* prepared);
  void prepare_rows(const float* x, int64_t x_stride, int64_t cols, int64_t row_count, uint8_t* prepared);
  void split_into_passes();
  void attention_pass(int64_t layer, const Pass& pass);
  void rotate_and_store(int64_t layer, const Pass& pass, const Block& block);
  void attend(int64_t layer, const Pass& pass, const Block& block);
  void delta_pass(int64_t layer, const Pass& pass);
  void delta_conv(int64_t layer, const Pass& pass, const Block& block);
  void delta_heads(int64_t layer, const Pass& pass, const Block& block);
  void add_product(const Matrix& matrix, const uint8_t* prepared, int64_t row_begin, int64_t row_count);
  void select(const float* logits, int64_t row_count, Routes& routes);
  void expert_group(std::span<const ExpertRows> group, int64_t row_count, int64_t k);
  void gated_mlp(const ExpertMatrices& m, const uint8_t* x, int64_t row_count, float* out);

  void compute_angles();

  const kernels::Kernels* kernels_;
  bool kv_is_bf16_;
  ThreadPool pool_;
  ModelWeights weights_;
  ModelShape shape_;
  int64_t experts_per_token_ = 0;
  std::vector<float> rope_frequencies_;  // [rotary_dim / 2]

  std::vector<int32_t> tokens_;
  std::vector<Span> spans_;
  std::vector<Block> blocks_;
  std::vector<Pass> passes_;
  int64_t row_count_ = 0;

  // Sized by the step.
  Scratch<float> hidden_;          // [rows, hidden] residual stream
  Scratch<float> rope_;            // [rows, rotary_dim]: cos, then sin, of each row's position
  Scratch<uint8_t> prepared_;      // [rows, prepared(hidden)] input of experts, or of a mixer block
  Scratch<float> expert_out_;      // [rows * k, hidden] in the order in which experts() came to them
  Scratch<int32_t> output_row_;    // [rows * k] assignment -> row of expert_out_
  Scratch<float> shared_out_;      // [rows, hidden]
  Scratch<float> shared_weight_;   // [rows]
  int64_t outputs_used_ = 0;
  // Sized by a block.
  Scratch<float> mixer_in_;        // attention: [q | k | v]; delta net: [qkv | z | b | a], each [rows, width]
  Scratch<float> mixer_mid_;       // delta net: convolved qkv
  Scratch<float> mixer_out_;       // [rows, heads * dim] before the output projection
  Scratch<float> projected_;       // [rows, hidden] or logits of the router
  Scratch<uint8_t> prepared_mid_;  // prepared rows of an inner width
  Scratch<float> inner_;           // [rows, 2 * inner] gate and up
  Scratch<float> attention_scores_;  // one strip for each lane
  struct Item {
    uint32_t product;
    int64_t row_begin, row_count, out_begin, out_end;
  };
  std::vector<Item> items_;
  std::vector<Product> products_;
  std::vector<ExpertRows> expert_rows_;
  std::vector<int32_t> group_row_;  // step row of each row of an expert group
};

}  // namespace flash_moe::backend
