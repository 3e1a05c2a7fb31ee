#include "model/pack_files.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "flash_moe/error.h"
#include "format/crc32c.h"

namespace flash_moe::model {
namespace {

constexpr uint64_t report_interval_bytes_max = 16 << 20;
constexpr uint64_t reports_min = 256;  // over the whole of a small pack
constexpr uint64_t block_bytes = 4 << 20;

}  // namespace

void PackProgress::add(uint64_t bytes) {
  bytes_done_ += bytes;
  if (!report_ || (bytes_done_ < next_report_ && bytes_done_ != bytes_total_)) return;
  next_report_ = bytes_done_ + std::min(report_interval_bytes_max, bytes_total_ / reports_min);
  if (report_(std::min(bytes_done_, bytes_total_), bytes_total_)) {
    throw CancelledError("packing was cancelled; run flash-moe pack again to resume");
  }
}

void ChecksummedFile::write(const void* data, size_t bytes) {
  file_.write_exact(data, bytes);
  checksum_ = format::crc32c(checksum_, data, bytes);
  progress_.add(bytes);
}

std::string compare_checksums(const std::string& path, uint64_t file_bytes, uint64_t record_bytes,
                              std::span<const uint32_t> checksums, PackProgress& progress) {
  const io::File file(path);
  if (file.size_bytes() != file_bytes) {
    return path + ": has " + std::to_string(file.size_bytes()) + " bytes, wanted " + std::to_string(file_bytes);
  }
  // Without this the comparison would be with memory, not with the drive. A hint: some systems have none.
  file.drop_cache(0, file_bytes);
  std::vector<uint8_t> block(std::min(block_bytes, record_bytes));
  for (size_t record = 0; record < checksums.size(); ++record) {
    uint32_t checksum = 0;
    for (uint64_t done = 0; done < record_bytes;) {
      const uint64_t bytes = std::min<uint64_t>(block.size(), record_bytes - done);
      file.read_exact(block.data(), bytes, record * record_bytes + done);
      checksum = format::crc32c(checksum, block.data(), bytes);
      progress.add(bytes);
      done += bytes;
    }
    if (checksum != checksums[record]) {
      return path + ": record " + std::to_string(record) + " has checksum " + std::to_string(checksum) + ", wanted " +
             std::to_string(checksums[record]);
    }
  }
  return "";
}

void write_text_file(const std::string& path, const std::string& text) {
  io::OutputFile file(path);
  file.write_exact(text.data(), text.size());
  file.commit();
}

void run_parallel(int64_t count, int thread_count, const std::function<void(int64_t)>& fn) {
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      try {
        fn(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < std::min<int64_t>(thread_count, count); ++i) {
    try {
      threads.emplace_back(work);
    } catch (const std::system_error&) {
      break;  // this thread does the rest
    }
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace flash_moe::model
