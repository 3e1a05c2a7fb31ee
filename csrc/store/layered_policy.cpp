#include "store/layered_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "store/key_lists.h"

namespace flash_moe::store {
namespace {

// DESIGN. Within a layer all weights fade at the same rate, so their order only changes by use: each layer is a heap,
// coldest on top, of log2 weights in which fading is left out (a use at visit n weighs 2^(n / half_life)). Layers are
// compared by subtracting the fading up to their next visit; a layer that was just visited has one more to go than one
// that is still to come in this token, which is what makes the order aware of the cycle.
class Decay final : public Policy {
 public:
  explicit Decay(const DecayOptions& options) : name_(options.name), rate_(1 / options.half_life) {}

  std::string_view name() const override { return name_; }

  void on_acquire(uint32_t layer, bool scan) override {
    if (scan) return;
    ++row(layer).visits;
    current_ = layer;
  }

  void on_hit(ExpertKey key, bool scan) override {
    if (scan) return;
    Row& layer = row(key_layer(key));
    const uint32_t at = layer.places.at(key_expert(key));
    const double use = layer.visits * rate_;
    const double old = layer.heap[at].weight;
    layer.heap[at].weight = use + std::log2(1 + std::exp2(old - use));
    sink(layer, at);
  }

  void on_insert(ExpertKey key, bool scan) override {
    Row& layer = row(key_layer(key));
    const uint32_t expert = key_expert(key);
    if (expert >= layer.places.size()) layer.places.resize(expert + size_t{1}, none);
    FM_CHECK(layer.places[expert] == none);
    const double weight = scan ? -std::numeric_limits<double>::max() : layer.visits * rate_;
    layer.places[expert] = static_cast<uint32_t>(layer.heap.size());
    layer.heap.push_back({weight, expert});
    rise(layer, layer.places[expert]);
  }

  void on_evict(ExpertKey key) override {
    Row& layer = row(key_layer(key));
    const uint32_t at = std::exchange(layer.places.at(key_expert(key)), none);
    FM_CHECK(at != none);
    const Entry last = layer.heap.back();
    layer.heap.pop_back();
    if (at == layer.heap.size()) return;
    layer.heap[at] = last;
    layer.places[last.expert] = at;
    rise(layer, at);
    sink(layer, layer.places[last.expert]);
  }

  bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) override {
    double best = std::numeric_limits<double>::infinity();
    const size_t count = rows_.size();
    // From the layer that was just visited backwards: of equals, the first seen comes round last.
    for (size_t back = 0; back < count; ++back) {
      const size_t index = (current_ + count - back) % count;
      Row& layer = rows_[index];
      if (layer.heap.empty() || !(layer.fresh(0, rate_) < best)) continue;
      coldest(layer, 0, [&](const Entry& entry, uint32_t at) {
        if (!(layer.fresh(at, rate_) < best)) return true;
        const ExpertKey key = expert_key(static_cast<int64_t>(index), entry.expert);
        if (!may_evict(key)) return false;
        best = layer.fresh(at, rate_);
        out = key;
        return true;
      });
    }
    return best < std::numeric_limits<double>::infinity();
  }

 private:
  static constexpr uint32_t none = KeyTable::none;
  struct Entry {
    double weight = 0;
    uint32_t expert = 0;
  };
  struct Row {
    std::vector<Entry> heap;
    std::vector<uint32_t> places;  // expert -> index in heap
    double visits = 0;

    // The weight as it will be at the layer's next visit.
    double fresh(uint32_t at, double rate) const { return heap[at].weight - visits * rate; }
  };

  Row& row(uint32_t layer) {
    if (layer >= rows_.size()) rows_.resize(layer + size_t{1});
    return rows_[layer];
  }

  // Walks a heap from the top, not below an entry for which `stop` says true. Few are looked at: those that may not
  // be evicted are in use, and so warm, unless they came by a scan.
  template <typename Stop>
  static void coldest(const Row& layer, uint32_t at, const Stop& stop) {
    if (at >= layer.heap.size() || stop(layer.heap[at], at)) return;
    coldest(layer, 2 * at + 1, stop);
    coldest(layer, 2 * at + 2, stop);
  }

  static void swap(Row& layer, uint32_t a, uint32_t b) {
    std::swap(layer.heap[a], layer.heap[b]);
    layer.places[layer.heap[a].expert] = a;
    layer.places[layer.heap[b].expert] = b;
  }
  static void rise(Row& layer, uint32_t at) {
    while (at > 0) {
      const uint32_t parent = (at - 1) / 2;
      if (!(layer.heap[at].weight < layer.heap[parent].weight)) return;
      swap(layer, at, parent);
      at = parent;
    }
  }
  static void sink(Row& layer, uint32_t at) {
    const auto count = static_cast<uint32_t>(layer.heap.size());
    for (;;) {
      uint32_t child = 2 * at + 1;
      if (child >= count) return;
      if (child + 1 < count && layer.heap[child + 1].weight < layer.heap[child].weight) ++child;
      if (!(layer.heap[child].weight < layer.heap[at].weight)) return;
      swap(layer, at, child);
      at = child;
    }
  }

  const char* name_;
  double rate_;
  size_t current_ = 0;
  std::vector<Row> rows_;
};

}  // namespace

std::unique_ptr<Policy> make_decay_policy(const DecayOptions& options) {
  return std::make_unique<Decay>(options);
}

}  // namespace flash_moe::store
