#include "base/thread_pool.h"

#include <algorithm>
#include <chrono>

#if defined(__linux__)
#include <sched.h>
#endif

namespace flash_moe {
namespace {

// Long enough to bridge the gap between two loops of a layer, short enough not to heat a laptop.
constexpr auto kSpin = std::chrono::microseconds(60);
constexpr int kSpinsForStragglers = 2000;  // a tenth of a millisecond
constexpr uint64_t kItemsMask = 0xffffffffu;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int thread_count) {
  for (int i = 1; i < thread_count; ++i) workers_.emplace_back([this] { worker_loop(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run_items(int64_t count, ItemFn fn, const void* context) {
  if (workers_.empty() || count == 1) {
    for (int64_t i = 0; i < count; ++i) fn(context, i);
    return;
  }
  // Far above any loop of a model; kept so that the item count fits its half of the ticket.
  constexpr int64_t kBlock = 1 << 30;
  if (count <= kBlock) {
    if (count > 0) run_block(static_cast<uint32_t>(count), fn, context);
    return;
  }
  for (int64_t i = 0; i < count; ++i) fn(context, i);
}

void ThreadPool::run_block(uint32_t count, ItemFn fn, const void* context) {
  job_ = {fn, context, count};
  done_.store(0, std::memory_order_relaxed);
  ++generation_;
  tickets_.store(generation_ << 32 | count);
  if (sleepers_.load() != 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
  while (take_and_run()) {
  }
  // A worker holds an item that is nearly done; if the system took its core away, give ours up too.
  for (int spins = 0; spins < kSpinsForStragglers; ++spins) {
    if (done_.load(std::memory_order_acquire) == count) return;
    pause_cpu();
  }
  caller_waits_.store(true);
  for (uint32_t done = done_.load(); done != count; done = done_.load()) done_.wait(done);
  caller_waits_.store(false, std::memory_order_relaxed);
}

bool ThreadPool::take_and_run() {
  uint64_t tickets = tickets_.load(std::memory_order_acquire);
  do {
    if ((tickets & kItemsMask) == 0) return false;
  } while (!tickets_.compare_exchange_weak(tickets, tickets - 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire));
  const Job& job = job_;
  job.fn(job.context, job.count - static_cast<int64_t>(tickets & kItemsMask));
  done_.fetch_add(1);
  if (caller_waits_.load()) done_.notify_one();
  return true;
}

void ThreadPool::worker_loop() {
  while (!stop_.load(std::memory_order_relaxed)) {
    if (take_and_run()) continue;
    const auto until = std::chrono::steady_clock::now() + kSpin;
    bool found = false;
    while (!found && std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 32 && !found; ++i) {
        pause_cpu();
        found = (tickets_.load(std::memory_order_relaxed) & kItemsMask) != 0;
      }
    }
    if (found) continue;
    const uint32_t seen = wake_.load();
    sleepers_.fetch_add(1);
    if ((tickets_.load() & kItemsMask) == 0 && !stop_.load()) wake_.wait(seen);
    sleepers_.fetch_sub(1);
  }
}

int usable_core_count() {
#if defined(__linux__)
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace flash_moe
