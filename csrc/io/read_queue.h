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
  void* destination = nullptr;
  // Past the page cache (File::read_exact_direct): offset and destination agree modulo 4096, and the whole hull of the
  // destination is writable and no other read's in flight.
  bool direct = false;
};

struct ReadQueueOptions {
  std::string engine = "auto";  // auto | threads | uring | gcd
  int depth = 0;                // reads in flight; 0 for the default
};

// Thread-safe. Files and destinations outlive the reads.
class ReadQueue {
 public:
  virtual ~ReadQueue() = default;  // finishes what was submitted
  virtual std::string name() const = 0;
  virtual int depth() const = 0;
  // Called once on a queue thread, after the last read of the batch landed (null) or failed (an IoError). May submit;
  // must not throw.
  using Done = std::function<void(std::exception_ptr error)>;
  using Batch = uint64_t;
  // Starts the reads; returns at once. Requests are copied. Every byte is read or `done` gets an IoError.
  // `urgent` batches overtake others that have not started (demand before prefetch).
  virtual Batch submit(std::span<const ReadRequest> requests, bool urgent, Done done) = 0;
  // Makes a batch urgent from here on (a prefetch that is now waited for). Nothing if it is done.
  virtual void promote(Batch batch) = 0;
  // True if no read of the batch had started: it is forgotten and `done` is never called.
  virtual bool cancel(Batch batch) = 0;
};

// Falls back from uring to threads by itself when the kernel refuses; name() tells. ConfigError for unknown names.
std::unique_ptr<ReadQueue> make_read_queue(const ReadQueueOptions& options);

}  // namespace flash_moe::io
