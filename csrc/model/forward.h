#pragma once
// A step of tokens through the model: the page to read first.
//
// Owns the order of operations and the conversation between the expert store and the backend; knows neither disks nor
// kernels. Which expert is computed when follows the reads; what is computed, and in which order it is summed, does not.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/phase_clock.h"
#include "flash_moe/stats.h"
#include "format/expert_map.h"
#include "model/prefetch_trial.h"
#include "model/weights_load.h"
#include "store/expert_store.h"

namespace flash_moe::model {

// Thread-compatible: one step at a time.
class Forward {
 public:
  // `load` fills `weights`; a step waits for each layer's. `prefetch`: whether to read what the next layer's router says of
  // this layer's state.
  Forward(backend::Backend& backend, store::ExpertStore& store, std::shared_ptr<const format::ExpertMap> map,
          const backend::ModelWeights& weights, ResidentLoad& load, Prefetch prefetch, PhaseClock& clock);

  // Runs `step`, and writes the logits of `logit_rows` to `logits` [logit_rows.size(), vocab]. `check` is called
  // before every layer, and while a layer's weights are waited for, and may throw to stop. After an exception the step's
  // sequences must be rolled back.
  void run(const backend::Step& step, std::span<const int32_t> logit_rows, float* logits,
           const std::function<void()>& check);

  // Every route since record(true).
  void record(bool on);
  RouteTrace take_record();

 private:
  struct Grouping {
    std::vector<int32_t> ids;          // experts chosen by some row, ascending
    std::vector<int32_t> begins;       // [ids + 1] into assignments
    std::vector<int32_t> assignments;  // row * k + rank, by expert, ascending
  };

  void wait_for_weights(int64_t stage, const std::function<void()>& check);
  void moe(int64_t layer, bool is_prefill);
  void group_routes(int64_t layer);
  store::Lease acquire(int64_t layer, std::span<const int32_t> ids, store::Access access, std::span<const float> logits);
  void compute_window(int64_t layer, store::Lease& lease, size_t first, size_t count);
  void hint_layer(int64_t layer, bool is_prefill);
  uint64_t reads_started() const;

  backend::Backend& backend_;
  store::ExpertStore& store_;
  std::shared_ptr<const format::ExpertMap> map_;
  const backend::ModelWeights& weights_;
  ResidentLoad& load_;
  PhaseClock& clock_;
  const Prefetch prefetch_;
  PrefetchTrial trial_;
  bool hints_ = false;          // in this step
  int64_t experts_wanted_ = 0;  // by this step, over all layers

  backend::Routes routes_, guess_;
  Grouping grouping_;
  std::vector<int32_t> counts_;
  std::vector<int32_t> hint_ids_, hint_counts_;
  std::vector<size_t> ready_;
  std::vector<backend::ExpertWork> work_;
  std::optional<store::Lease> deferred_;  // experts that the backend may still be reading
  bool recording_ = false;
  RouteTrace record_;
};

}  // namespace flash_moe::model
