#include "model/forward.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace flash_moe::model {
namespace {

// Enough to keep the drive busy. More of them would take other layers' slots before computed experts give theirs back.
constexpr size_t kPromptHintsInFlight = 8;

}  // namespace

Forward::Forward(backend::Backend& backend, store::ExpertStore& store, std::shared_ptr<const format::ExpertMap> map,
                 const backend::ModelWeights& weights, ResidentLoad& load, Prefetch prefetch, PhaseClock& clock)
    : backend_(backend), store_(store), map_(std::move(map)), weights_(weights), load_(load), clock_(clock),
      prefetch_(prefetch), trial_(prefetch) {}

void Forward::run(const backend::Step& step, std::span<const int32_t> logit_rows, float* logits,
                  const std::function<void()>& check) {
  // An error in an earlier step may have left its lease here; its reads are over or fail harmlessly.
  deferred_.reset();
  hints_ = step.is_prefill ? prefetch_ != Prefetch::off : trial_.on();
  const uint64_t reads_before = reads_started();
  const uint64_t begin_ns = PhaseClock::now_ns();
  experts_wanted_ = 0;
  wait_for_weights(0, check);
  {
    PhaseClock::Scope scope(clock_, Phase::embed);
    backend_.begin(step);
  }
  for (int64_t layer = 0; layer < weights_.shape.layer_count(); ++layer) {
    check();
    wait_for_weights(layer + 1, check);
    const LayerShape& shape = weights_.shape.layers[static_cast<size_t>(layer)];
    {
      const bool full = shape.mixer == MixerKind::full_attention;
      PhaseClock::Scope scope(clock_, full ? Phase::attention : Phase::delta_net, layer);
      backend_.mixer(layer);
    }
    if (shape.is_moe) {
      moe(layer, step.is_prefill);
    } else {
      PhaseClock::Scope scope(clock_, Phase::experts, layer);
      backend_.dense_mlp(layer);
    }
  }
  if (!logit_rows.empty()) {
    wait_for_weights(weights_.shape.layer_count() + 1, check);
    PhaseClock::Scope scope(clock_, Phase::head);
    backend_.logits(logit_rows, logits);
    scope.add_bytes(static_cast<uint64_t>(weights_.head.total_bytes()));
  }
  backend_.wait_experts();
  deferred_.reset();
  backend_.end();
  if (!step.is_prefill && experts_wanted_ > 0) {
    const uint64_t ns = PhaseClock::now_ns() - begin_ns;
    trial_.step_done(ns / static_cast<uint64_t>(experts_wanted_), reads_started() != reads_before);
  }
}

// A load that is over costs a look.
void Forward::wait_for_weights(int64_t stage, const std::function<void()>& check) {
  if (load_.ready(stage)) return;
  PhaseClock::Scope scope(clock_, Phase::read_wait, stage - 1);
  load_.wait(stage, check);
}

uint64_t Forward::reads_started() const {
  const store::StoreStats stats = store_.stats();
  return stats.misses + stats.prefetched;
}

void Forward::moe(int64_t layer, bool is_prefill) {
  {
    PhaseClock::Scope scope(clock_, Phase::router, layer);
    backend_.route(layer, routes_);
    group_routes(layer);
  }
  // The router's answer is behind everything that was enqueued before it, the last layer's experts included.
  backend_.wait_experts();
  deferred_.reset();

  const auto access = is_prefill ? store::Access::scan : store::Access::decode;
  const std::span<const int32_t> ids(grouping_.ids);
  experts_wanted_ += std::ssize(ids);
  // All at once if they fit; otherwise two windows that take turns: one is read while the other computes.
  const size_t capacity = store_.capacity();
  const size_t window = ids.size() <= capacity ? ids.size() : std::max<size_t>(1, capacity / 2);
  store::Lease current = acquire(layer, ids.first(window), access, routes_.logits);
  {
    PhaseClock::Scope scope(clock_, Phase::shared_expert, layer);
    backend_.shared_expert(layer);
  }
  // A prompt that finds its experts in the cache needs none of the next layer's: wrong guesses would cost it new slots' pages.
  const bool worth = !is_prefill || 16 * current.fresh() > ids.size();
  if (hints_ && worth && window == ids.size()) hint_layer(layer + 1, is_prefill);
  for (size_t first = 0; first < ids.size();) {
    const size_t count = current.size();
    const size_t next_first = first + count;
    std::optional<store::Lease> next;
    if (next_first < ids.size() && capacity >= 2 * window)
      next = acquire(layer, ids.subspan(next_first, std::min(window, ids.size() - next_first)), access, {});
    compute_window(layer, current, first, count);
    first = next_first;
    if (first >= ids.size()) break;
    backend_.wait_experts();
    if (next) {
      current = std::move(*next);
    } else {
      // A single slot: it must be free before it can be filled again.
      { const store::Lease over = std::move(current); }
      current = acquire(layer, ids.subspan(first, std::min(window, ids.size() - first)), access, {});
    }
  }
  {
    PhaseClock::Scope scope(clock_, Phase::combine, layer);
    backend_.combine(layer, routes_);
  }
  // Once more with the experts' results: names more of them, though with less time left. The rows of a prompt correct one
  // another already.
  if (hints_ && !is_prefill) hint_layer(layer + 1, is_prefill);
  // A backend that only enqueues reads these slots later. They stay pinned until the next layer's router has
  // answered, unless the next layer could then not get slots of its own.
  if (capacity < 2 * grouping_.ids.size()) backend_.wait_experts();
  if (capacity >= 2 * grouping_.ids.size()) deferred_ = std::move(current);
}

// Asking takes no time worth a phase of its own, but queues whose reads are copies may take the core for themselves.
store::Lease Forward::acquire(int64_t layer, std::span<const int32_t> ids, store::Access access,
                              std::span<const float> logits) {
  PhaseClock::Scope scope(clock_, Phase::read_wait, layer);
  return store_.acquire(layer, ids, access, logits);
}

void Forward::compute_window(int64_t layer, store::Lease& lease, size_t first, size_t count) {
  const uint64_t expert_bytes = map_->expert_bytes(layer);
  for (size_t taken = 0; taken < count;) {
    ready_.clear();
    lease.take_ready(ready_, false);
    if (ready_.empty()) {
      PhaseClock::Scope scope(clock_, Phase::read_wait, layer);
      lease.take_ready(ready_, true);
    }
    PhaseClock::Scope scope(clock_, Phase::experts, layer);
    work_.clear();
    for (const size_t i : ready_) {
      const size_t expert = first + i;
      const auto begin = static_cast<size_t>(grouping_.begins[expert]);
      const auto end = static_cast<size_t>(grouping_.begins[expert + 1]);
      work_.push_back({map_->matrices(layer, grouping_.ids[expert], lease.slot(i)),
                       std::span<const int32_t>(grouping_.assignments).subspan(begin, end - begin)});
    }
    backend_.experts(layer, routes_, work_);
    scope.add_bytes(expert_bytes * ready_.size());
    if (backend_.experts_done()) lease.release(ready_);
    taken += ready_.size();
  }
}

// Counting sort of the assignments by expert.
void Forward::group_routes(int64_t layer) {
  const size_t total = routes_.ids.size();
  counts_.assign(static_cast<size_t>(map_->expert_count(layer)) + 1, 0);
  for (const int32_t id : routes_.ids) ++counts_[static_cast<size_t>(id) + 1];
  grouping_.ids.clear();
  grouping_.begins.clear();
  for (size_t id = 0; id + 1 < counts_.size(); ++id) {
    if (counts_[id + 1] != 0) {
      grouping_.ids.push_back(static_cast<int32_t>(id));
      grouping_.begins.push_back(counts_[id]);
    }
    counts_[id + 1] += counts_[id];
  }
  grouping_.begins.push_back(static_cast<int32_t>(total));
  grouping_.assignments.resize(total);
  for (size_t i = 0; i < total; ++i) {
    int32_t& next = counts_[static_cast<size_t>(routes_.ids[i])];
    grouping_.assignments[static_cast<size_t>(next++)] = static_cast<int32_t>(i);
  }
  if (!recording_) return;
  const auto k = static_cast<size_t>(routes_.per_row);
  for (size_t row = 0; row * k < total; ++row) {
    std::vector<int32_t> line{static_cast<int32_t>(layer)};
    line.insert(line.end(), routes_.ids.begin() + static_cast<std::ptrdiff_t>(row * k),
                routes_.ids.begin() + static_cast<std::ptrdiff_t>((row + 1) * k));
    record_.rows.push_back(std::move(line));
  }
  record_.logits.insert(record_.logits.end(), routes_.logits.begin(), routes_.logits.end());
}

// Likeliest first: what most rows name, and of those what a row ranks highest.
void Forward::hint_layer(int64_t layer, bool is_prefill) {
  if (layer >= weights_.shape.layer_count() || !weights_.shape.layers[static_cast<size_t>(layer)].is_moe) return;
  if (!load_.ready(layer + 1) || store_.holds_layer(layer)) return;
  PhaseClock::Scope scope(clock_, Phase::router, layer);
  backend_.guess_routes(layer, guess_);
  hint_ids_.clear();
  hint_counts_.assign(static_cast<size_t>(map_->expert_count(layer)), 0);
  for (int64_t rank = 0; rank < guess_.per_row; ++rank) {
    for (int64_t row = 0; row < guess_.row_count; ++row) {
      const int32_t id = guess_.ids[static_cast<size_t>(row * guess_.per_row + rank)];
      if (hint_counts_[static_cast<size_t>(id)]++ == 0) hint_ids_.push_back(id);
    }
  }
  std::stable_sort(hint_ids_.begin(), hint_ids_.end(), [this](int32_t a, int32_t b) {
    return hint_counts_[static_cast<size_t>(a)] > hint_counts_[static_cast<size_t>(b)];
  });
  store_.prefetch(layer, hint_ids_, is_prefill ? kPromptHintsInFlight : hint_ids_.size());
}

void Forward::record(bool on) {
  recording_ = on;
  record_ = {};
}

RouteTrace Forward::take_record() { return std::exchange(record_, {}); }

}  // namespace flash_moe::model
