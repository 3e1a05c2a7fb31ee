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
constexpr uint64_t kEndMask = 0xffffffffu;
constexpr uint64_t kOneItem = uint64_t{1} << 32;  // of a share's first

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int thread_count) : shares_(static_cast<size_t>(std::max(1, thread_count))) {
  for (size_t i = 1; i < shares_.size(); ++i) workers_.emplace_back([this, i] { worker_loop(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  posted_.fetch_add(1);
  posted_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run_items(int64_t count, ItemFn fn, const void* context) {
  // The limit is far above any loop of a model.
  if (count > 1 && count <= static_cast<int64_t>(kEndMask) && !workers_.empty()) {
    return run_block(static_cast<uint32_t>(count), fn, context);
  }
  for (int64_t i = 0; i < count; ++i) fn(context, i);
}

void ThreadPool::run_block(uint32_t count, ItemFn fn, const void* context) {
  job_ = {fn, context};
  done_.store(0, std::memory_order_relaxed);
  uint64_t first = 0;
  for (size_t i = 0; i < shares_.size(); ++i) {
    const uint64_t end = uint64_t{count} * (i + 1) / shares_.size();
    shares_[i].items.store(first * kOneItem | end, std::memory_order_release);
    first = end;
  }
  posted_.fetch_add(1);
  if (sleepers_.load() != 0) posted_.notify_all();
  work(0);
  // A worker holds an item that is nearly done; if the system took its core away, give ours up too.
  for (int spins = 0; spins < kSpinsForStragglers; ++spins) {
    if (done_.load(std::memory_order_acquire) == count) return;
    pause_cpu();
  }
  caller_waits_.store(true);
  for (uint32_t done = done_.load(); done != count; done = done_.load()) done_.wait(done);
  caller_waits_.store(false, std::memory_order_relaxed);
}

void ThreadPool::work(size_t own) {
  while (take_and_run(shares_[own], Side::front)) {
  }
  for (size_t i = 1; i < shares_.size(); ++i) {
    Share& other = shares_[(own + i) % shares_.size()];
    while (take_and_run(other, Side::back)) {
    }
  }
}

bool ThreadPool::take_and_run(Share& share, Side side) {
  uint64_t items = share.items.load(std::memory_order_acquire);
  uint64_t taken = 0;
  uint64_t left = 0;
  do {
    const uint64_t first = items / kOneItem;
    const uint64_t end = items & kEndMask;
    if (first == end) return false;
    taken = side == Side::front ? first : end - 1;
    left = side == Side::front ? items + kOneItem : items - 1;
  } while (!share.items.compare_exchange_weak(items, left, std::memory_order_acq_rel, std::memory_order_acquire));
  job_.fn(job_.context, static_cast<int64_t>(taken));
  done_.fetch_add(1);
  if (caller_waits_.load()) done_.notify_one();
  return true;
}

void ThreadPool::worker_loop(size_t index) {
  for (uint32_t seen = 0; !stop_.load(std::memory_order_relaxed);) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    bool found = false;
    do {
      for (int i = 0; i < 32 && !found; ++i) {
        found = posted_.load(std::memory_order_relaxed) != seen;
        if (!found) pause_cpu();
      }
    } while (!found && std::chrono::steady_clock::now() < until);
    if (!found) {
      sleepers_.fetch_add(1);
      posted_.wait(seen);
      sleepers_.fetch_sub(1);
    }
    seen = posted_.load();
    work(index);
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
