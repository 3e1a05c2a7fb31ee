#include "store/policy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "flash_moe/error.h"
#include "store/key_lists.h"

namespace flash_moe::store {
namespace {

// Least recently used.
class Lru final : public Policy {
 public:
  std::string_view name() const override { return "lru"; }
  void on_hit(ExpertKey key, bool scan) override {
    if (!scan) lists_.move(lists_.find(key), 0, true);
  }
  void on_insert(ExpertKey key, bool scan) override { lists_.insert(key, 0, !scan); }
  void on_evict(ExpertKey key) override { lists_.erase(key); }
  bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) override {
    for (uint32_t node = lists_.back(0); node != KeyLists::none; node = lists_.towards_front(node)) {
      out = lists_.key(node);
      if (may_evict(out)) return true;
    }
    return false;
  }

 private:
  KeyLists lists_{1};
};

// A mark for each use; the hand takes the first unmarked one and unmarks what it passes.
class Clock final : public Policy {
 public:
  std::string_view name() const override { return "clock"; }
  void on_hit(ExpertKey key, bool scan) override {
    if (!scan) lists_.set_mark(lists_.find(key), true);
  }
  void on_insert(ExpertKey key, bool scan) override { lists_.insert(key, 0, !scan); }
  void on_evict(ExpertKey key) override { lists_.erase(key); }
  bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) override {
    // After one turn every mark is gone, so the second one finds whatever may be evicted. What may not (a lease has it,
    // or it is being read) keeps its place.
    for (int turn = 0; turn < 2; ++turn) {
      const size_t steps = lists_.size(0);
      uint32_t node = lists_.back(0);
      for (size_t step = 0; step < steps; ++step) {
        const uint32_t next = lists_.towards_front(node);
        out = lists_.key(node);
        if (lists_.mark(node)) {
          lists_.set_mark(node, false);
          lists_.move(node, 0, true);
        } else if (may_evict(out)) {
          return true;
        }
        node = next;
      }
    }
    return false;
  }

 private:
  KeyLists lists_{1};
};

// Newcomers are on probation; a second use moves them to a protected list of four fifths of the capacity, whose
// coldest go back. What is used once cannot push out what was used twice.
class SegmentedLru final : public Policy {
 public:
  explicit SegmentedLru(size_t capacity) { on_capacity(capacity); }
  std::string_view name() const override { return "slru"; }
  void on_capacity(size_t capacity) override {
    protected_max_ = capacity * 4 / 5;
    demote();
  }
  void on_hit(ExpertKey key, bool scan) override {
    if (scan) return;
    lists_.move(lists_.find(key), protected_list, true);
    demote();
  }
  void on_insert(ExpertKey key, bool scan) override { lists_.insert(key, probation_list, !scan); }
  void on_evict(ExpertKey key) override { lists_.erase(key); }
  bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) override {
    for (const uint32_t list : {probation_list, protected_list}) {
      for (uint32_t node = lists_.back(list); node != KeyLists::none;
           node = lists_.towards_front(node)) {
        out = lists_.key(node);
        if (may_evict(out)) return true;
      }
    }
    return false;
  }

 private:
  static constexpr uint32_t probation_list = 0;
  static constexpr uint32_t protected_list = 1;

  void demote() {
    while (lists_.size(protected_list) > protected_max_) {
      lists_.move(lists_.back(protected_list), probation_list, true);
    }
  }

  KeyLists lists_{2};
  size_t protected_max_ = 0;
};

// What the router thought of an expert lately: for each layer an average of its logits over decoded tokens, each row with
// mean 0 and deviation 1, so that layers compare; the newest row has half of the weight. Evicts the lowest, because
// an expert that was nearly chosen is likelier to be chosen next than one that was chosen long ago. Several rows are tokens of
// as many sequences: the largest of what they think of an expert stands for them. Where no logits are known, a use counts
// as a row in which only the chosen differ from 0.
class RouterScore final : public Policy {
 public:
  std::string_view name() const override { return "score"; }
  void on_acquire(uint32_t layer, std::span<const float> logits, size_t row_count, bool scan) override {
    ++clock_;
    if (scan) return;
    Layer& here = at(layer);
    here.lowest_known = false;
    for (Expert& expert : here.experts) expert.cold = false;
    if (row_count == 0) {
      if (!here.has_logits) {
        for (Expert& expert : here.experts) expert.score *= keep;
      }
      return;
    }
    here.has_logits = true;
    const size_t count = logits.size() / row_count;
    if (here.experts.size() < count) here.experts.resize(count);
    largest_.assign(count, -std::numeric_limits<float>::infinity());
    for (size_t row = 0; row < row_count; ++row) take_largest(logits.subspan(row * count, count));
    if (largest_.front() == -std::numeric_limits<float>::infinity()) return;
    for (size_t e = 0; e < count; ++e)
      here.experts[e].score = keep * here.experts[e].score + (1 - keep) * largest_[e];
  }
  void on_hit(ExpertKey key, bool scan) override {
    if (!scan) use(key);
  }
  void on_insert(ExpertKey key, bool scan) override {
    Layer& layer = at(key_layer(key));
    if (layer.experts.size() <= key_expert(key)) layer.experts.resize(key_expert(key) + size_t{1});
    Expert& expert = layer.experts[key_expert(key)];
    FM_CHECK(!expert.held);
    expert.held = true;
    expert.cold = scan;
    expert.last = ++clock_;
    ++layer.held_count;
    layer.lowest_known = false;
    if (!scan) use(key);
  }
  void on_evict(ExpertKey key) override {
    Layer& layer = layers_[key_layer(key)];
    FM_CHECK(layer.experts[key_expert(key)].held);
    layer.experts[key_expert(key)].held = false;
    --layer.held_count;
    layer.lowest_known = false;
  }
  bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) override {
    const Expert* best = nullptr;
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      if (layer.held_count == 0) continue;
      if (!layer.lowest_known) {
        layer.lowest = lowest(layer, [](size_t) { return true; });
        layer.lowest_known = true;
      }
      const auto allowed = [&](size_t e) {
        return may_evict(expert_key(static_cast<int64_t>(l), static_cast<int64_t>(e)));
      };
      // The lowest of all bounds the lowest of those that may go.
      size_t candidate = layer.lowest;
      if (best != nullptr && !before(layer.experts[candidate], *best)) continue;
      if (!allowed(candidate)) candidate = lowest(layer, allowed);
      if (candidate == layer.experts.size()) continue;
      if (best != nullptr && !before(layer.experts[candidate], *best)) continue;
      best = &layer.experts[candidate];
      out = expert_key(static_cast<int64_t>(l), static_cast<int64_t>(candidate));
    }
    return best != nullptr;
  }

 private:
  struct Expert {
    float score = 0;
    bool held = false;
    bool cold = false;
    uint64_t last = 0;  // use or, while cold, insert
  };
  struct Layer {
    std::vector<Expert> experts;
    size_t held_count = 0;
    size_t lowest = 0;  // of those held
    bool lowest_known = false;
    bool has_logits = false;
  };
  static constexpr float keep = 0.5f;

  Layer& at(uint32_t layer) {
    if (layers_.size() <= layer) layers_.resize(layer + size_t{1});
    return layers_[layer];
  }
  // Of those that a scan brought, the last first: the next scan wants the first ones first.
  static bool before(const Expert& a, const Expert& b) {
    if (a.cold != b.cold) return a.cold;
    if (a.cold) return a.last > b.last;
    return a.score != b.score ? a.score < b.score : a.last < b.last;
  }
  // Index of the first to go among those held for which `allowed` holds; experts.size() if there is none.
  template <typename Allowed>
  static size_t lowest(const Layer& layer, const Allowed& allowed) {
    size_t found = layer.experts.size();
    for (size_t e = 0; e < layer.experts.size(); ++e) {
      const Expert& expert = layer.experts[e];
      if (!expert.held || (found < layer.experts.size() && !before(expert, layer.experts[found]))) continue;
      if (allowed(e)) found = e;
    }
    return found;
  }
  void use(ExpertKey key) {
    Layer& layer = layers_[key_layer(key)];
    Expert& expert = layer.experts[key_expert(key)];
    expert.last = ++clock_;
    expert.cold = false;
    if (!layer.has_logits) expert.score += 1 - keep;
    layer.lowest_known = false;
  }
  void take_largest(std::span<const float> row) {
    float sum = 0;
    for (const float x : row) sum += x;
    const float mean = sum / static_cast<float>(row.size());
    float squares = 0;
    for (const float x : row) squares += (x - mean) * (x - mean);
    const float scale = 1 / std::sqrt(squares / static_cast<float>(row.size()));
    if (!std::isfinite(scale)) return;  // all alike, or no numbers
    for (size_t e = 0; e < row.size(); ++e) largest_[e] = std::max(largest_[e], scale * (row[e] - mean));
  }

  std::vector<Layer> layers_;
  std::vector<float> largest_;  // of an acquire's rows
  uint64_t clock_ = 0;
};

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names = {"auto", "score", "lru", "clock", "slru"};
  return names;
}

std::unique_ptr<Policy> make_policy(std::string_view name, size_t capacity) {
  if (name == "auto" || name == "score") return std::make_unique<RouterScore>();
  if (name == "lru") return std::make_unique<Lru>();
  if (name == "clock") return std::make_unique<Clock>();
  if (name == "slru") return std::make_unique<SegmentedLru>(capacity);
  std::string known;
  for (const std::string& each : policy_names()) known += (known.empty() ? "" : ", ") + each;
  throw ConfigError("eviction policy: wanted one of " + known + ", got '" + std::string(name) + "'");
}

}  // namespace flash_moe::store
