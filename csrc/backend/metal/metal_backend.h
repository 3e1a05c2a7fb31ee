#pragma once
// The backend that runs on Apple GPUs: the same layer operations as backend/cpu, as kernels of metal/. Included by
// Objective-C++ with ARC only.
//
// DESIGN. Every call but `route`, `guess_routes`, `logits` and `end` only encodes. Commits are placed so that the GPU never waits
// for the host where it need not: at `route` (the host waits for its ids), after the shared expert, and after each group of
// experts, so that those found in memory run while the others are read. `combine` is committed with the next layer's mixer.
// The wait is for the shared event's number of the commit, which the last layer's experts lie before: `wait_experts`
// behind a `route` therefore never waits.
// Precision::float32 uses kernels that give each row the bits it has alone, so that chunks and batches do not show in them.
// Precision::fast uses simdgroup matrices for prompts, whatever their number of rows: their sums run in another order.
// Rows pass a mixer in blocks of at most kBlockRows; what grows with the step is in step_bytes.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/create.h"
#include "backend/metal/metal_commands.h"
#include "backend/metal/metal_sequence.h"

namespace flash_moe::backend {

// A resident matrix with what it takes to multiply by it.
struct MetalMatrix {
  MetalPlace data, scales, biases;
  uint32_t rows = 0, cols = 0, format = 0;
  MetalPipeline matvec, matmul;
};

// Activations: grows to the largest step. Contents do not survive growth; what the GPU still reads, it keeps.
class MetalScratch {
 public:
  MetalBuffer ensure(MetalDevice& device, int64_t floats);
  MetalBuffer buffer() const { return buffer_; }
  const float* floats() const { return static_cast<const float*>(buffer_.contents); }
  void trim(int64_t floats);

 private:
  MetalBuffer buffer_;
};

// A row block of f32 in a scratch buffer.
struct MetalRows {
  MetalBuffer buffer;
  int64_t offset = 0;  // floats
  int64_t stride = 0;  // floats

  MetalPlace at(int64_t row = 0) const { return {buffer, static_cast<size_t>(offset + row * stride) * sizeof(float)}; }
};

// Threadgroups that cover n of something, `by` in each.
inline size_t groups_of(int64_t n, int64_t by) { return static_cast<size_t>((n + by - 1) / by); }
inline uint32_t to_u32(int64_t n) { return static_cast<uint32_t>(n); }

class MetalBackend final : public Backend {
 public:
  explicit MetalBackend(const BackendOptions& options);

  std::string description() const override;
  uint64_t memory_bytes_max() const override;
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
  void wait_experts() override;
  void combine(int64_t layer, const Routes& routes) override;
  void dense_mlp(int64_t layer) override;
  void logits(std::span<const int32_t> rows, float* out) override;
  void end() override;

 private:
  static constexpr int64_t kBlockRows = 256;

  struct AttentionMatrices {
    MetalMatrix q, k, v, o;
    MetalPlace q_norm, k_norm;
  };
  struct DeltaMatrices {
    MetalMatrix qkv, z, b, a, out;
    MetalPlace conv, decay_rate, dt_bias, norm;
  };
  struct MlpMatrices {
    MetalMatrix gate, up, down;
    MetalPipeline gated;  // silu(gate x) * up x
  };
  struct Layer {
    MetalPlace input_norm, post_norm;
    AttentionMatrices attention;
    DeltaMatrices delta_net;
    MetalMatrix router, shared_expert_gate;
    MlpMatrices mlp;  // the shared expert, or the dense MLP
  };
  // Pipelines for experts of these formats.
  struct ExpertKernels {
    uint32_t gate, up, down;
    MetalPipeline gate_up_rows, down_rows;
    MetalPipeline gate_up_tiles, down_tiles;  // Precision::fast
  };
  struct FixedKernels {
    MetalPipeline embed, rms_norm, silu_mul, router_topk, combine, combine_norm;
    MetalPipeline qk_norm_rope_append, attention_decode, attention_merge, attention_prefill;
    MetalPipeline conv_silu, delta_qk_norm, gated_delta, gated_norm;
  };

  // Rows [begin, begin + count) of the step, all of one sequence; `position` of the first.
  struct Block {
    MetalSequence* sequence;
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
  // Rows of a block whose attention is computed together, and where their partial results lie.
  struct AttentionPart {
    const Block* block;
    int64_t first;  // row of the block
    int64_t count;
    int64_t split_count;
    int64_t partials;  // floats
    int64_t stats;     // floats
  };
  // Where a block's inputs and outputs lie in the mixer's scratch.
  struct MixerRows {
    MetalRows q, k, v;                      // attention
    MetalRows qkv, z, b, a, convolved;      // delta net
    MetalRows out;
  };
  // Experts of one call that lie in one buffer.
  struct ExpertGroup {
    MetalBuffer arena;
    const ExpertKernels* kernels;
    std::vector<metal::ExpertPlace> places;
    std::vector<metal::ExpertItem> items;
    std::vector<int32_t> assignments;
    int64_t inner_begin = 0;  // row of the call's inner buffer
  };

  MetalMatrix resident(const Matrix& matrix, const char* name);
  MetalPlace resident(const float* values, int64_t count);
  MlpMatrices resident_mlp(const Matrix& gate, const Matrix& up, const Matrix& down, const char* name);
  AttentionMatrices resident_attention(const AttentionWeights& weights);
  DeltaMatrices resident_delta(const DeltaNetWeights& weights);
  void make_fixed_kernels();
  const ExpertKernels& expert_kernels(const ExpertMatrices& matrices);
  // Decided by where the rows came from and not by their number, nor by which experts are ready: both change with settings.
  bool is_wide() const { return is_fast_ && is_prefill_; }

  void multiply(const MetalMatrix& matrix, const MetalRows& x, int64_t row_count, const MetalRows& y, bool add = false);
  void gated_mlp(const MlpMatrices& m, const MetalRows& x, int64_t row_count, const MetalRows& y, bool add);
  void normalise(const MetalPlace& weight, const MetalRows& x, int64_t row_count, const MetalRows& y,
                 std::span<const int32_t> rows = {});
  void split_into_passes();
  void embed_tokens();
  void compute_angles();
  void attention_pass(int64_t layer, const Pass& pass);
  MixerRows attention_rows(int64_t layer, const Pass& pass);
  void rotate_and_store(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows);
  void attend(int64_t layer, const Pass& pass, const MixerRows& rows);
  void attend_parts(int64_t layer, const Pass& pass, const MixerRows& rows, std::span<const AttentionPart> parts);
  void attend_wide(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows);
  metal::AttentionArgs attention_args(int64_t layer, int64_t position, int64_t row_count) const;
  void delta_pass(int64_t layer, const Pass& pass);
  MixerRows delta_rows(const Pass& pass);
  void delta_conv(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows);
  void delta_heads(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows);
  void select(const MetalRows& logits, MetalBuffer ids, MetalBuffer weights);
  void read_routes(MetalBuffer ids, MetalBuffer weights, Routes& routes) const;
  void add_expert(const ExpertWork& work, bool tiles);
  void encode_expert_group(const ExpertGroup& group, const Routes& routes, bool tiles, bool down);
  MetalRows hidden_rows(int64_t row = 0) const { return {hidden_.buffer(), row * shape_.hidden, shape_.hidden}; }

  std::shared_ptr<MetalDevice> device_;
  std::shared_ptr<MetalCommands> commands_;
  MetalRegions regions_;
  bool kv_is_bf16_;
  bool is_fast_;
  ModelShape shape_;
  int64_t experts_per_token_ = 0;
  std::vector<float> rope_frequencies_;  // [rotary_dim / 2]
  MetalMatrix embedding_, head_;
  MetalPlace final_norm_;
  std::vector<Layer> layers_;
  std::vector<std::unique_ptr<ExpertKernels>> expert_kernels_;
  FixedKernels kernels_;

  std::vector<int32_t> tokens_;
  std::vector<Span> spans_;
  std::vector<Block> blocks_;
  std::vector<Pass> passes_;
  int64_t row_count_ = 0;
  bool is_prefill_ = false;
  int64_t normed_layer_ = -1;    // the layer whose mixer input x_ already holds
  int64_t outputs_encoded_ = 0;  // assignments given to experts() since route()
  uint64_t experts_number_ = 0;  // commit that the last experts lie before

  // Sized by the step.
  MetalScratch hidden_;        // [rows, hidden] residual stream
  MetalScratch x_;             // [rows, hidden] normed: the mixer's input, then the experts'
  MetalScratch angles_;        // [rows, rotary_dim]: cos, then sin, of each row's position
  MetalScratch expert_inner_;  // [rows * k, moe_inner]
  MetalScratch expert_out_;    // [rows * k, hidden] by assignment
  MetalScratch shared_out_;    // [rows, hidden]
  MetalScratch shared_gate_;   // [rows] before the sigmoid
  MetalScratch router_logits_; // [rows, experts]
  MetalScratch ids_, route_weights_;        // [rows, k]
  MetalScratch guess_ids_, guess_weights_;
  // Sized by a block.
  MetalScratch mixer_in_;      // attention: [q | k | v]; delta net: [qkv | z | b | a | convolved]
  MetalScratch mixer_out_;     // [rows, heads * dim] before the output projection
  MetalScratch partials_, stats_;
  MetalScratch inner_;         // [rows, inner], twice that for simdgroup matrices
  MetalScratch normed_, logits_;
  std::vector<float> host_angles_;
  std::vector<AttentionPart> parts_;
  std::vector<ExpertGroup> expert_groups_;
};

}  // namespace flash_moe::backend
