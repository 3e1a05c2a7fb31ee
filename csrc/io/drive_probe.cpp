#include "io/drive_probe.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <random>

#include "base/aligned_memory.h"
#include "flash_moe/error.h"
#include "io/piece_queue.h"

namespace flash_moe::io {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Keeps `depth` records in flight until a bound is reached.
class Probe {
 public:
  Probe(const File& file, int depth, const DriveProbeOptions& options, std::span<const uint64_t> offsets)
      : file_(file),
        options_(options),
        offsets_(offsets),
        memory_(options.record_bytes * static_cast<uint64_t>(depth), HugePages::if_possible),
        queue_(make_read_queue({options.engine, depth})) {
    memory_.touch(0, memory_.size_bytes());
    for (int i = 0; i < depth; ++i) idle_.push_back(i);
  }

  DriveSpeed run() {
    DriveSpeed speed;
    speed.depth = queue_->depth();
    const Clock::time_point begin = Clock::now();
    std::unique_lock lock(mutex_);
    size_t next = 0;
    while (!error_ && next < offsets_.size() && (next == 0 || seconds_since(begin) < options_.seconds_max)) {
      changed_.wait(lock, [this] { return !idle_.empty(); });
      if (error_) break;
      const int place = idle_.back();
      idle_.pop_back();
      lock.unlock();
      start(place, offsets_[next++]);
      lock.lock();
    }
    changed_.wait(lock, [&] { return idle_.size() == static_cast<size_t>(speed.depth); });
    speed.seconds = seconds_since(begin);
    if (error_) std::rethrow_exception(error_);
    speed.bytes = next * options_.record_bytes;
    return speed;
  }

 private:
  void start(int place, uint64_t offset) {
    uint8_t* destination = memory_.data() + options_.record_bytes * static_cast<uint64_t>(place);
    const ReadRequest request{&file_, offset, options_.record_bytes, destination, options_.direct};
    queue_->submit({&request, 1}, true, [this, place](const std::exception_ptr& error) {
      const std::lock_guard lock(mutex_);
      if (error && !error_) error_ = error;
      idle_.push_back(place);
      changed_.notify_one();
    });
  }

  const File& file_;
  const DriveProbeOptions& options_;
  const std::span<const uint64_t> offsets_;
  AlignedMemory memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int> idle_;
  std::exception_ptr error_;
  std::unique_ptr<ReadQueue> queue_;  // ends first: its reads go into memory_
};

}  // namespace

std::vector<DriveSpeed> probe_drive(const File& file, std::span<const int> depths,
                                    const DriveProbeOptions& given) {
  DriveProbeOptions options = given;
  options.record_bytes = direct_hull(0, options.record_bytes).bytes;
  const uint64_t records = options.record_bytes == 0 ? 0 : file.size_bytes() / options.record_bytes;
  if (records == 0) {
    throw ConfigError("drive probe: wanted a file of at least one record of " +
                      std::to_string(options.record_bytes) + " bytes, " + file.path() + " has " +
                      std::to_string(file.size_bytes()));
  }
  // Each depth reads other places, so that no cache of the drive or the system has them.
  std::vector<uint64_t> order(records);
  std::iota(order.begin(), order.end(), uint64_t{0});
  std::mt19937_64 random(options.seed);
  std::vector<DriveSpeed> speeds;
  size_t used = order.size();
  const auto count = std::clamp<uint64_t>(options.bytes_max / options.record_bytes, 1, records);
  for (const int depth : depths) {
    if (depth < 1) throw ConfigError("drive probe: wanted depths from 1, got " + std::to_string(depth));
    if (order.size() - used < count) {
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
      used = 0;
    }
    std::vector<uint64_t> offsets(order.begin() + static_cast<ptrdiff_t>(used),
                                  order.begin() + static_cast<ptrdiff_t>(used + count));
    used += count;
    for (uint64_t& offset : offsets) {
      offset *= options.record_bytes;
      if (!options.direct) file.drop_cache(offset, options.record_bytes);
    }
    speeds.push_back(Probe(file, depth, options, offsets).run());
  }
  return speeds;
}

}  // namespace flash_moe::io
