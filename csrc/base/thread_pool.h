#pragma once
// A few threads that split loops of microseconds: the caller takes part, workers spin briefly and then sleep.
//
// DESIGN. One job at a time, run() is called by one thread. `tickets_` holds (generation << 32 | items left); taking
// an item is a compare-and-swap on it. A worker reads `job_` only while it holds an item, and run() does not return (so
// job_ does not change) before every item is done. A worker that wakes late finds no items and touches nothing.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace flash_moe {

class ThreadPool {
 public:
  // `thread_count` threads in all, the caller's among them; at least 1.
  explicit ThreadPool(int thread_count);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int thread_count() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(i) once for every i in [0, count), on any thread, in any order; returns when all are done.
  // fn must not throw. Which thread runs what never matters to a result: items write to places of their own.
  template <typename Fn>
  void run(int64_t count, const Fn& fn) {
    run_items(count, [](const void* context, int64_t i) { (*static_cast<const Fn*>(context))(i); }, &fn);
  }

 private:
  using ItemFn = void (*)(const void* context, int64_t index);
  struct Job {
    ItemFn fn = nullptr;
    const void* context = nullptr;
    uint32_t count = 0;
  };

  void run_items(int64_t count, ItemFn fn, const void* context);
  void run_block(uint32_t count, ItemFn fn, const void* context);
  bool take_and_run();
  void worker_loop();

  Job job_;
  uint64_t generation_ = 0;
  alignas(64) std::atomic<uint64_t> tickets_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<bool> caller_waits_{false};  // asleep until done_ changes
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Cores this process may run on (affinity and container quota respected), at least 1.
int usable_core_count();

}  // namespace flash_moe
