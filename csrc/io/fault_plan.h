#pragma once
// Faults on purpose: what tests and EngineOptions::fail_read do to reads. One plan is shared by all files of an engine;
// files without one pay a null check a read.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>

namespace flash_moe::io {

class FaultPlan {
 public:
  // What happens to one attempt to read: one pread(2), or one entry of an io_uring.
  struct Attempt {
    int error = 0;                                              // errno to fail with; 0: none
    size_t bytes_max = std::numeric_limits<size_t>::max();  // a short read: no more than this is reported

    // Direct reads stay whole pages, or the kernel would refuse them.
    size_t bytes_to_ask(size_t bytes, bool direct) const {
      if (bytes_max >= bytes) return bytes;
      return direct ? std::min(bytes, (bytes_max + 4095) / 4096 * 4096) : bytes_max;
    }
  };

  virtual ~FaultPlan() = default;
  // Called before every attempt, from any thread.
  virtual Attempt next_attempt() = 0;
};

// Fails the Nth attempt with EIO, counted from 1.
class FailNthRead final : public FaultPlan {
 public:
  explicit FailNthRead(uint64_t nth) : nth_(nth) {}
  Attempt next_attempt() override;
  uint64_t attempts() const { return attempts_.load(std::memory_order_relaxed); }

 private:
  const uint64_t nth_;
  std::atomic<uint64_t> attempts_{0};
};

}  // namespace flash_moe::io
