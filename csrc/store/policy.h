#pragma once
// Eviction policies: pure bookkeeping. No I/O, no threads, no clock.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace flash_moe::store {

// layer << 32 | expert.
using ExpertKey = uint64_t;

class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  virtual void on_hit(ExpertKey key, bool scan) = 0;
  virtual void on_insert(ExpertKey key, bool scan) = 0;
  virtual void on_evict(ExpertKey key) = 0;
  // The key to evict among those inserted for which `may_evict` holds. False if there is none.
  virtual bool victim(const std::function<bool(ExpertKey)>& may_evict, ExpertKey& out) = 0;
};

// "lru", "clock", "lfu-decay" ... ConfigError names the known ones otherwise. `capacity` in experts.
std::unique_ptr<Policy> make_policy(std::string_view name, size_t capacity);

}  // namespace flash_moe::store
