#pragma once
// Eviction policies: pure bookkeeping. No I/O, no threads, no clock.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flash_moe::store {

// layer << 32 | expert.
using ExpertKey = uint64_t;

constexpr ExpertKey expert_key(int64_t layer, int64_t expert) {
  return static_cast<uint64_t>(layer) << 32 | static_cast<uint32_t>(expert);
}
constexpr uint32_t key_layer(ExpertKey key) { return static_cast<uint32_t>(key >> 32); }
constexpr uint32_t key_expert(ExpertKey key) { return static_cast<uint32_t>(key); }

// A `scan` (prefill, hints) leaves what it hits where it is, and enters at the cold end: the next victim.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  // Before the hits and inserts of one acquire of one layer's experts. `logits` are those of the router, one or more rows
  // of all experts of the layer, in the order of tokens; empty where they are not known.
  virtual void on_acquire(uint32_t layer, std::span<const float> logits, size_t row_count, bool scan) {
    static_cast<void>(layer);
    static_cast<void>(logits);
    static_cast<void>(row_count);
    static_cast<void>(scan);
  }
  virtual void on_hit(ExpertKey key, bool scan) = 0;
  virtual void on_insert(ExpertKey key, bool scan) = 0;
  virtual void on_evict(ExpertKey key) = 0;
  // The key to evict among those inserted for which `may_evict` holds. False if there is none. Forgets nothing: the
  // caller tells by on_evict.
  virtual bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) = 0;
  // The store was resized, in experts.
  virtual void on_capacity(size_t capacity) { static_cast<void>(capacity); }
};

// ConfigError lists policy_names() for any other name. `capacity` in experts.
std::unique_ptr<Policy> make_policy(std::string_view name, size_t capacity);
// What make_policy knows, "auto" first.
const std::vector<std::string>& policy_names();

}  // namespace flash_moe::store
