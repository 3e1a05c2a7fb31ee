#pragma once
// What a device must do: a dozen operations of layer size over a step of rows, plus memory. There is no
// tensor class and no graph: model/forward.cpp calls these in the order in which a token passes through the model.
//
// DESIGN: a step is `row_count` tokens of one or more sequences. The backend owns the step's activations (residual
// stream, mixer and expert outputs); the caller owns sequences, slots and routes. A GPU backend may only enqueue
// in every call but `route` and `logits`, which are the two places where the host waits. Memory that `experts` reads
// must stay untouched until `wait_experts` says so. Calls come from one thread at a time.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/weights.h"
#include "base/slot.h"

namespace flash_moe::backend {

// Page-aligned memory that the device can read; freed with the object. Zero-filled.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual uint8_t* data() const = 0;
  virtual size_t bytes() const = 0;
};

// The recurrent memory of one sequence: key/value cache, convolution window, delta-rule state.
// Steps write beside the committed state, so that a failed one costs nothing: `rollback` forgets every step
// since the last `commit`.
class Sequence {
 public:
  virtual ~Sequence() = default;
  virtual int64_t position() const = 0;  // tokens seen, uncommitted ones included
  virtual void commit() = 0;
  virtual void rollback() = 0;
  virtual uint64_t bytes() const = 0;    // memory held now
  virtual std::unique_ptr<Sequence> fork() const = 0;
  // Every piece of state up to position(), in a fixed order, for saving: name, address, bytes.
  using Visitor = std::function<void(const std::string& name, uint8_t* data, size_t bytes)>;
  virtual void visit(const Visitor& visitor) = 0;
  // Makes room for and moves to `position` tokens, contents unspecified: the first half of loading.
  virtual void resize(int64_t position) = 0;
};

// Rows [row_begin, row_begin + row_count) of a step continue `sequence` at its position().
struct Span {
  Sequence* sequence = nullptr;
  int64_t row_begin = 0;
  int64_t row_count = 0;
};

// Rows of a prompt and rows that continue a text may use different kernels, so they never share a step: which bits a
// token gets follows from where it came from, not from how many rows stand beside it.
struct Step {
  std::span<const int32_t> tokens;  // [row_count]
  std::span<const Span> spans;      // cover the rows in order; no sequence twice
  bool is_prefill = false;
};

// The router's choice for every row, rank 0 first (the largest weight; ties to the lower id).
struct Routes {
  int64_t row_count = 0;
  int64_t per_row = 0;            // k
  std::vector<int32_t> ids;       // [row_count, k]
  std::vector<float> weights;     // [row_count, k]
  std::span<const float> logits;  // [row_count, experts], until the next call of the backend
};

// One expert in memory and the rows that chose it, as indices row * k + rank into Routes, ascending.
struct ExpertWork {
  ExpertMatrices matrices;
  std::span<const int32_t> assignments;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string description() const = 0;  // "cpu: avx512vnni, 2 threads"

  virtual std::unique_ptr<DeviceMemory> allocate(size_t bytes) = 0;
  virtual std::unique_ptr<SlotArena> allocate_slots(size_t slot_bytes, size_t slot_count) = 0;

  // The model's dimensions and the number of experts each token uses: what the sizes below depend on. Called once,
  // before anything is loaded.
  virtual void set_shape(const ModelShape& shape, int64_t experts_per_token) = 0;
  // The model's resident weights: views into memory from `allocate`, which outlive the backend's use. Called once,
  // before the first step; what a layer's views show is there before the first call for that layer, not before.
  virtual void set_weights(const ModelWeights& weights) = 0;
  virtual std::unique_ptr<Sequence> new_sequence() = 0;
  // Bytes one sequence will hold at `position` tokens, and bytes of activations a step of `row_count` rows needs.
  virtual uint64_t sequence_bytes(int64_t position) const = 0;
  virtual uint64_t step_bytes(int64_t row_count) const = 0;
  // Gives activation memory above what a step of `row_count` rows needs back to the system.
  virtual void trim_step(int64_t row_count) = 0;

  // Starts a step: looks the tokens up into the residual stream h [row_count, hidden].
  virtual void begin(const Step& step) = 0;
  // h += mixer(input_norm(h)), and the sequences' state of this layer moves on by their rows.
  virtual void mixer(int64_t layer) = 0;
  // x = post_norm(h); routes = top-k of the router on x. The host has the ids when this returns.
  virtual void route(int64_t layer, Routes& routes) = 0;
  // The router of `layer` on the post-attention state of the layer now at hand: a guess for prefetch, no promise. Of a long
  // step a backend may look at the first rows only; routes.row_count tells.
  virtual void guess_routes(int64_t layer, Routes& routes) = 0;
  // Computes the shared expert of x (kept for `combine`).
  virtual void shared_expert(int64_t layer) = 0;
  // Computes experts for their assignments (kept for `combine`); any number of calls, each assignment once.
  virtual void experts(int64_t layer, const Routes& routes, std::span<const ExpertWork> work) = 0;
  // Returns when the memory of every `experts` call so far may be overwritten.
  virtual void wait_experts() = 0;
  // Whether that is so already.
  virtual bool experts_done() const { return false; }
  // h += sum over ranks of weight * expert output, in rank order, then the gated shared expert.
  virtual void combine(int64_t layer, const Routes& routes) = 0;
  // The dense MLP of a layer without experts: h += mlp(post_norm(h)).
  virtual void dense_mlp(int64_t layer) = 0;
  // out[i] = head(final_norm(h[rows[i]])), f32 [rows.size(), vocab].
  virtual void logits(std::span<const int32_t> rows, float* out) = 0;
  // Ends the step: positions of its sequences move on. After an error in between, roll its sequences back instead.
  virtual void end() = 0;
  // Memory that the device can keep resident at once, weights, slots and activations together; 0: no bound of its own.
  virtual uint64_t memory_bytes_max() const { return 0; }
};

}  // namespace flash_moe::backend
