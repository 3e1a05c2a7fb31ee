#pragma once
// Asynchronous exact reads. One interface; thread_queue.cpp everywhere, uring_queue.cpp on Linux, gcd_queue.cpp on Apple.

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "io/file.h"

namespace flash_moe::io {

struct ReadRequest {
  const File* file = nullptr;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  void* destination = nullptr;  // offset and destination agree modulo 4096 (direct_hull in io/file.h)
};

struct ReadQueueOptions {
  std::string engine = "auto";  // auto | threads | uring | gcd
  int depth = 0;                // reads in flight; 0 for the default
};

class ReadQueue {
 public:
  virtual ~ReadQueue() = default;  // finishes what was submitted
  virtual std::string name() const = 0;
  virtual int depth() const = 0;
  // Called once on a queue thread, after the last read of the batch landed (null) or failed (an IoError).
  using Done = std::function<void(std::exception_ptr error)>;
  // Starts the reads; returns at once. Requests are copied. Every byte is read or `done` gets an IoError.
  // `urgent` batches overtake others that have not started (demand before prefetch).
  virtual void submit(std::span<const ReadRequest> requests, bool urgent, Done done) = 0;
};

// Falls back from uring to threads by itself when the kernel refuses; name() tells. ConfigError for unknown names.
std::unique_ptr<ReadQueue> make_read_queue(const ReadQueueOptions& options);

}  // namespace flash_moe::io
