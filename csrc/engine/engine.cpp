// Opening a model and the parts of the engine's interface that are not steps.
#include "flash_moe/engine.h"

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "base/cgroup.h"
#include "engine/engine_impl.h"
#include "engine/inspect.h"
#include "io/fault_plan.h"

namespace flash_moe {

std::shared_ptr<Engine> Engine::open(const std::string& path, const EngineOptions& options, const Progress& progress) {
  return std::make_shared<engine::EngineImpl>(path, options, progress);
}

namespace engine {
namespace {

// In cache="os" the page cache keeps experts; slots only hold what is being computed and read.
constexpr int64_t kOsCacheSlotsPerExpertOfToken = 4;

// What a saved session must agree with: the tensors' names and sizes, some of their values, and how many experts are used.
uint64_t fingerprint(const model::ModelFiles& files, const backend::ModelWeights& weights, const ModelInfo& info) {
  uint64_t tensors = 0;  // a sum, because the map has no order
  for (const auto& [name, tensor] : files.checkpoint().tensors()) {
    const uint64_t about[] = {tensor.bytes, static_cast<uint64_t>(tensor.dtype)};
    tensors += mix_hash(mix_hash(0, name.data(), name.size()), about, sizeof about);
  }
  const uint64_t numbers[] = {tensors, info.experts_bytes, static_cast<uint64_t>(info.experts_per_token)};
  const auto hidden = static_cast<size_t>(weights.shape.hidden);
  const uint64_t head = mix_hash(mix_hash(1, numbers, sizeof numbers), weights.final_norm, hidden * sizeof(float));
  return mix_hash(head, weights.embedding.data, static_cast<size_t>(weights.embedding.row_bytes()));
}

}  // namespace

EngineImpl::EngineImpl(const std::string& path, const EngineOptions& options, const Progress& progress)
    : path_(path), options_(options) {
  const uint64_t process_bytes = process_resident_bytes();
  const model::Prefetch prefetch = prefetch_option(options_);
  backend_ = make_backend(options_);
  kv_is_bf16_ = kv_is_bf16(options_);
  files_ = model::ModelFiles::open(path_);
  info_ = model_info(*files_, options_, backend_->description());
  // What cannot fit is said before gigabytes are read.
  backend_->set_shape(files_->shape(), info_.experts_per_token);
  budget_ = budget_inputs(*files_, options_, *backend_, process_bytes, 0);
  plan_ = divide_memory(budget_);
  cache_mode_ = cache_mode(options_, *files_, plan_);
  load(progress);
  build_store();
  forward_ = std::make_unique<model::Forward>(*backend_, *store_, files_->experts(), model_.weights, *model_.load,
                                              prefetch, clock_);
}

EngineImpl::~EngineImpl() = default;

void EngineImpl::load(const Progress& progress) {
  const auto allocate = [this](size_t bytes) { return backend_->allocate(bytes); };
  model::ByteProgress bytes_progress;
  if (progress) {
    bytes_progress = [&progress](uint64_t done, uint64_t total) {
      return progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
    };
  }
  const bool background = load_in_background(options_, plan_.resident_bytes) && options_.fail_read == 0;
  model_ = files_->start_load(allocate);
  backend_->set_weights(model_.weights);
  if (!background) model_.load->wait_all(bytes_progress);
}

void EngineImpl::build_store() {
  const auto& files = files_->experts()->files();
  if (options_.fail_read != 0) {
    const auto faults = std::make_shared<io::FailNthRead>(options_.fail_read);
    for (const auto& file : files) file->set_faults(faults);
  }
  if (cache_mode_ == "os" && options_.cache_slots == 0) {
    budget_.slots_wanted = kOsCacheSlotsPerExpertOfToken * info_.experts_per_token;
    plan_ = divide_memory(budget_);
  }
  // A model without experts still has a store, of one slot that nobody asks for.
  const auto slots = static_cast<size_t>(std::max<int64_t>(plan_.slots_all, 1));
  arena_ = backend_->allocate_slots(std::max<size_t>(budget_.slot_bytes, 4096), slots);
  queue_ = io::make_read_queue({.engine = options_.io, .depth = options_.queue_depth});
  const auto capacity = static_cast<size_t>(std::max<int64_t>(plan_.slots, 1));
  auto policy = store::make_policy(options_.policy, capacity);
  policy_name_ = policy->name();
  store_ = std::make_unique<store::ExpertStore>(files_->experts(), *arena_, *queue_, std::move(policy), capacity,
                                                cache_mode_ == "slots");
}

MemoryPlan EngineImpl::memory_plan() const {
  const std::lock_guard lock(step_mutex_);
  return plan_;
}

std::unique_ptr<Session> EngineImpl::new_session() {
  auto self = std::static_pointer_cast<EngineImpl>(shared_from_this());
  return std::make_unique<SessionImpl>(std::move(self), backend_->new_sequence(), std::vector<int32_t>());
}

std::unique_ptr<Session> EngineImpl::load_session(const std::string& path) {
  auto sequence = backend_->new_sequence();
  std::vector<int32_t> tokens = read_session(path, identity(), *sequence);
  sequence->commit();
  auto self = std::static_pointer_cast<EngineImpl>(shared_from_this());
  return std::make_unique<SessionImpl>(std::move(self), std::move(sequence), std::move(tokens));
}

SessionIdentity EngineImpl::identity() const {
  model_.load->wait(0, [] {});  // all that the fingerprint looks at
  return {fingerprint(*files_, model_.weights, info_), kv_is_bf16_, info_.context};
}

void EngineImpl::attach(SessionImpl& session) {
  const std::lock_guard lock(step_mutex_);
  sessions_.insert(&session);
}

void EngineImpl::detach(SessionImpl& session) {
  const std::lock_guard lock(step_mutex_);
  sessions_.erase(&session);
}

void EngineImpl::set_memory(uint64_t memory_bytes) {
  const std::lock_guard lock(step_mutex_);
  BudgetInputs inputs = budget_;
  inputs.memory_bytes = memory_bytes;
  inputs.context_tokens = 0;
  const MemoryPlan plan = divide_memory(inputs);
  const int64_t slots = slots_beside(plan, inputs, std::max(sequences_bytes(), plan.sequence_bytes));
  if (slots < plan.slots_min)
    throw ConfigError("memory=" + std::to_string(memory_bytes) + " bytes leaves " + std::to_string(slots) +
                      " slots beside the open sessions; at least " + std::to_string(plan.slots_min) +
                      " are needed: close sessions or choose more");
  budget_ = inputs;
  plan_ = plan;
  backend_->trim_step(plan_.prefill_chunk);
  store_->set_capacity(static_cast<size_t>(std::max<int64_t>(slots, 1)));
}

void EngineImpl::drop_cache() {
  const std::lock_guard lock(step_mutex_);
  store_->clear();
}

Stats EngineImpl::stats() const {
  const std::lock_guard lock(step_mutex_);
  Stats stats;
  uint64_t known_ns = 0;
  for (size_t i = 0; i < static_cast<size_t>(Phase::count); ++i) {
    const auto phase = static_cast<Phase>(i);
    const PhaseClock::Total& total = clock_.total(phase);
    stats.phases.push_back({phase_name(phase), total.ns, total.calls, total.bytes});
    known_ns += total.ns;
  }
  stats.phases.push_back({"other", counters_.step_ns > known_ns ? counters_.step_ns - known_ns : 0, 0, 0});
  stats.step_ns = counters_.step_ns;
  stats.steps = counters_.steps;
  stats.prefill_tokens = counters_.prefill_tokens;
  stats.decode_tokens = counters_.decode_tokens;
  stats.prefill_ns = counters_.prefill_ns;
  stats.decode_ns = counters_.decode_ns;
  const store::StoreStats store = store_->stats();
  stats.expert_hits = store.hits;
  stats.expert_joined = store.joined;
  stats.expert_misses = store.misses;
  stats.read_bytes = store.read_bytes;
  stats.read_ns = store.read_ns;
  stats.wait_ns = store.wait_ns;
  stats.prefetched = store.prefetched;
  stats.prefetch_used = store.prefetch_used;
  stats.prefetch_late = store.prefetch_late;
  stats.failed_reads = store.failed_reads;
  stats.slots = static_cast<int64_t>(store_->capacity());
  stats.cache_mode = cache_mode_;
  stats.io_engine = queue_->name();
  stats.policy = policy_name_;
  if (info_.experts_per_token != info_.experts_per_token_trained)
    stats.lossy = std::to_string(info_.experts_per_token) + " of " +
                  std::to_string(info_.experts_per_token_trained) + " experts";
  return stats;
}

void EngineImpl::reset_stats() {
  const std::lock_guard lock(step_mutex_);
  counters_ = {};
  clock_.reset();
  store_->reset_stats();
}

void EngineImpl::trace(bool on) {
  const std::lock_guard lock(step_mutex_);
  clock_.trace(on);
}

std::string EngineImpl::take_trace_json() {
  const std::lock_guard lock(step_mutex_);
  return clock_.take_trace_json();
}

void EngineImpl::record_routes(bool on) {
  const std::lock_guard lock(step_mutex_);
  forward_->record(on);
}

RouteTrace EngineImpl::take_routes() {
  const std::lock_guard lock(step_mutex_);
  return forward_->take_record();
}

}  // namespace engine
}  // namespace flash_moe
