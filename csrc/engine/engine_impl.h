#pragma once
// A loaded model and its sessions. Owns every part and introduces them to each other: files, memory, store, backend.
//
// DESIGN. `step_mutex_` is held for one step, so steps of several threads take turns; it also guards what a step changes:
// store capacity, the sum of sequence bytes, the clock. Sessions keep the engine alive. Order of destruction: forward, store
// (waits for reads in flight), queue, arena, backend.

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "backend/create.h"
#include "base/phase_clock.h"
#include "engine/memory_budget.h"
#include "engine/session_file.h"
#include "flash_moe/engine.h"
#include "io/read_queue.h"
#include "model/forward.h"
#include "model/weights.h"
#include "store/expert_store.h"

namespace flash_moe::engine {

class SessionImpl;

class EngineImpl final : public Engine {
 public:
  EngineImpl(const std::string& path, const EngineOptions& options, const Progress& progress);
  ~EngineImpl() override;

  const ModelInfo& info() const override { return info_; }
  MemoryPlan memory_plan() const override;
  std::unique_ptr<Session> new_session() override;
  std::unique_ptr<Session> load_session(const std::string& path) override;
  void decode(std::span<Session* const> sessions, std::span<const int32_t> tokens, float* logits,
              const Progress& progress) override;
  void set_memory(uint64_t memory_bytes) override;
  void drop_cache() override;
  Stats stats() const override;
  void reset_stats() override;
  void trace(bool on) override;
  std::string take_trace_json() override;
  void record_routes(bool on) override;
  RouteTrace take_routes() override;

  // For SessionImpl.
  void feed(SessionImpl& session, std::span<const int32_t> tokens, float* last, float* all, const Progress& progress);
  void attach(SessionImpl& session);
  void detach(SessionImpl& session);
  SessionIdentity identity() const;

 private:
  struct Counters {
    uint64_t step_ns = 0, steps = 0;
    uint64_t prefill_tokens = 0, decode_tokens = 0;
    uint64_t prefill_ns = 0, decode_ns = 0;
  };

  void load(const Progress& progress);
  void build_store();
  void check_tokens(std::span<const int32_t> tokens) const;
  void check_context(int64_t position, int64_t tokens) const;
  void make_room(std::span<SessionImpl* const> growing, int64_t rows_each);
  uint64_t sequences_bytes() const;
  void run_step(const backend::Step& step, std::span<const int32_t> logit_rows, float* logits,
                const std::function<void()>& check);

  std::string path_;
  EngineOptions options_;
  ModelInfo info_;
  bool kv_is_bf16_ = false;
  std::string cache_mode_;
  std::string policy_name_;

  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<model::ModelFiles> files_;
  model::LoadedWeights model_;
  BudgetInputs budget_;
  MemoryPlan plan_;
  std::unique_ptr<SlotArena> arena_;
  std::unique_ptr<io::ReadQueue> queue_;
  std::unique_ptr<store::ExpertStore> store_;
  PhaseClock clock_;
  std::unique_ptr<model::Forward> forward_;

  mutable std::mutex step_mutex_;
  std::set<SessionImpl*> sessions_;
  Counters counters_;
};

class SessionImpl final : public Session {
 public:
  SessionImpl(std::shared_ptr<EngineImpl> engine, std::unique_ptr<backend::Sequence> sequence,
              std::vector<int32_t> tokens);
  ~SessionImpl() override;

  int64_t position() const override { return static_cast<int64_t>(tokens_.size()); }
  std::span<const int32_t> tokens() const override { return tokens_; }
  uint64_t bytes() const override { return sequence_->bytes(); }
  void feed(std::span<const int32_t> tokens, float* last, float* all, const Progress& progress) override;
  std::unique_ptr<Session> fork() const override;
  void save(const std::string& path) const override;

 private:
  friend class EngineImpl;
  std::shared_ptr<EngineImpl> engine_;
  std::unique_ptr<backend::Sequence> sequence_;
  std::vector<int32_t> tokens_;
};

}  // namespace flash_moe::engine
