#pragma once
// Reads resident weights in the background, in the order in which a step meets them, so that an engine is there before
// its last layers are.
//
// DESIGN. Threads take tasks by stage, under one mutex; a stage is ready when all tasks up to its end are done, which is published through
// an atomic, so that asking for a ready stage costs a load. The first task that fails goes back into the list and stops the others
// at their next task; its error goes to one waiter, and the wait after that starts the threads again: a read
// that failed once is asked for once more by the next step, not remembered. Who waits is never called back by another
// thread: progress and cancelling are the waiter's own.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "model/weights_read.h"

namespace flash_moe::model {

// Called on the thread that waits, at the start, a few times a second and at the end; true stops, and the wait throws
// CancelledError.
using ByteProgress = std::function<bool(uint64_t bytes_done, uint64_t bytes_total)>;

// Thread-safe.
class ResidentLoad {
 public:
  // Starts to read. `tasks` by stage, each from 0 to stage_count - 1.
  ResidentLoad(std::vector<ReadTask> tasks, int64_t stage_count, int thread_count);
  ~ResidentLoad();  // stops at the next task and joins
  ResidentLoad(const ResidentLoad&) = delete;
  ResidentLoad& operator=(const ResidentLoad&) = delete;

  bool ready(int64_t stage) const { return ready_stages_.load(std::memory_order_acquire) > stage; }
  // Returns when stages 0 to `stage` are there. `check` is called meanwhile and may throw to stop waiting; the reading goes
  // on. Throws the IoError or FormatError of a task; the next wait tries that task again.
  void wait(int64_t stage, const std::function<void()>& check);
  void wait_all(const ByteProgress& progress);

 private:
  void start();
  void stop(std::unique_lock<std::mutex>& lock);
  void work();
  void finish(size_t task);

  const std::vector<ReadTask> tasks_;
  const size_t thread_count_;
  uint64_t bytes_total_ = 0;
  std::atomic<uint64_t> bytes_done_{0};
  std::atomic<int64_t> ready_stages_{0};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
  std::vector<size_t> tasks_left_;  // by stage
  size_t next_ = 0;                 // the first task that nobody took
  std::vector<size_t> failed_;      // tasks to be run again
  size_t running_ = 0;              // threads in work()
  bool stopping_ = false;
  std::exception_ptr error_;
};

}  // namespace flash_moe::model
