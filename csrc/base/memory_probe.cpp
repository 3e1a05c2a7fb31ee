#include "base/memory_probe.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/aligned_memory.h"
#include "base/cgroup.h"
#include "flash_moe/error.h"

namespace flash_moe {
namespace {

using Clock = std::chrono::steady_clock;

// What a core can have on its way at most: four places at once, each asked for ahead of its use. One place alone gets half of
// it on some machines, and a bound that is half of what the memory gives makes every speed look twice as good.
uint64_t sum(const uint64_t* words, size_t count) {
  constexpr size_t kStreams = 4;
  constexpr size_t kLine = 8;
  constexpr size_t kStep = 4 * kLine;
  constexpr size_t kAhead = 16 * kLine;
  using Vector = uint64_t __attribute__((vector_size(64), aligned(8), may_alias));
  Vector sums[kStep / kLine] = {};
  const size_t part = count / kStreams / kStep * kStep;
  for (size_t i = 0; i < part; i += kStep) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const uint64_t* const at = words + stream * part + i;
      for (size_t k = 0; k < kStep; k += kLine) {
        __builtin_prefetch(at + kAhead + k);
        sums[k / kLine] += *reinterpret_cast<const Vector*>(at + k);
      }
    }
  }
  const Vector all = sums[0] + sums[1] + sums[2] + sums[3];
  uint64_t total = 0;
  for (size_t k = 0; k < kLine; ++k) total += all[k];
  return total;
}

// The largest that Linux lists, as "266240K"; 0 elsewhere: Apple's caches are below half of what a probe reads at least.
uint64_t largest_cache_bytes() {
  uint64_t largest_kib = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    uint64_t kib = 0;
    if (file >> kib) largest_kib = std::max(largest_kib, kib);
  }
  return largest_kib << 10;
}

}  // namespace

size_t memory_probe_bytes(uint64_t cache_bytes, uint64_t available_bytes) {
  constexpr uint64_t kLeast = uint64_t{256} << 20;
  const uint64_t wanted = std::max(kLeast, 2 * cache_bytes);
  return static_cast<size_t>(available_bytes == 0 ? wanted : std::min(wanted, available_bytes / 4));
}

double probe_memory(const MemoryProbeOptions& options) {
  if (options.threads < 1) {
    throw ConfigError("memory probe: wanted at least 1 thread, got " + std::to_string(options.threads));
  }
  const auto threads = static_cast<size_t>(options.threads);
  const size_t wanted = options.bytes != 0
                            ? options.bytes
                            : memory_probe_bytes(largest_cache_bytes(), read_memory_state().available_bytes());
  const size_t words = std::max<size_t>(128, wanted / sizeof(uint64_t) / threads / 128 * 128);
  const AlignedMemory memory(words * threads * sizeof(uint64_t), HugePages::if_possible);
  auto* const data = reinterpret_cast<uint64_t*>(memory.data());
  double best = 0;
  bool go_on = true;
  Clock::time_point first;
  Clock::time_point last;
  std::atomic<uint64_t> total{0};
  // Runs while all threads stand at the barrier: ends a pass, and decides about the next.
  const auto between = [&]() noexcept {
    const Clock::time_point now = Clock::now();
    if (first == Clock::time_point()) {
      first = now;  // the memory has just been filled
    } else {
      const double seconds = std::chrono::duration<double>(now - last).count();
      const auto bytes = static_cast<double>(words * threads * sizeof(uint64_t));
      if (seconds > 0) best = std::max(best, bytes / seconds);
      go_on = std::chrono::duration<double>(now - first).count() < options.seconds;
    }
    last = now;
  };
  std::barrier barrier(options.threads, between);
  const auto work = [&](size_t index) {
    uint64_t* const part = data + index * words;
    // Untouched pages would all be the system's one page of zeros.
    std::fill(part, part + words, uint64_t{index + 1});
    barrier.arrive_and_wait();
    while (go_on) {
      total.fetch_add(sum(part, words), std::memory_order_relaxed);
      barrier.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& thread : others) thread.join();
  return total.load() == 0 ? 0 : best;  // the sums are used, so that they are computed
}

}  // namespace flash_moe
