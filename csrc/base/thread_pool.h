#pragma once
// A few threads that split loops of microseconds: the caller takes part, workers spin briefly and then sleep.
//
// DESIGN. One job at a time, run() is called by one thread. Each thread has a share of neighbouring items, which it runs in
// order, so that what it reads is one stream; when its share is empty it takes items from the ends of the others'.
// Taking one is a compare-and-swap on the share. Shares are filled after `job_` is written and are empty when run() returns,
// which is not before every item is done: who took an item may read `job_`, and who wakes late finds none.

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
  };
  struct alignas(64) Share {
    std::atomic<uint64_t> items{0};  // first << 32 | end
  };
  enum class Side : uint8_t { front, back };

  void run_items(int64_t count, ItemFn fn, const void* context);
  void run_block(uint32_t count, ItemFn fn, const void* context);
  void work(size_t own);
  bool take_and_run(Share& share, Side side);
  void worker_loop(size_t index);

  Job job_;
  std::vector<Share> shares_;  // the caller's is the first
  alignas(64) std::atomic<uint32_t> posted_{0};  // jobs so far; workers sleep on it
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<bool> caller_waits_{false};  // asleep until done_ changes
  alignas(64) std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Cores this process may run on (affinity and container quota respected), at least 1.
int usable_core_count();

}  // namespace flash_moe
