#include "store/policy.h"

#include <algorithm>

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

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names = {"auto", "lru", "clock", "slru"};
  return names;
}

std::unique_ptr<Policy> make_policy(std::string_view name, size_t capacity) {
  if (name == "auto" || name == "lru") return std::make_unique<Lru>();
  if (name == "clock") return std::make_unique<Clock>();
  if (name == "slru") return std::make_unique<SegmentedLru>(capacity);
  std::string known;
  for (const std::string& each : policy_names()) known += (known.empty() ? "" : ", ") + each;
  throw ConfigError("eviction policy: wanted one of " + known + ", got '" + std::string(name) + "'");
}

}  // namespace flash_moe::store
