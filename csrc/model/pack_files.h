#pragma once
// What the parts of a pack's writer share: progress with cancellation, files with a running checksum, reading back.

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "format/pack.h"
#include "io/output_file.h"
#include "model/weights_load.h"

namespace flash_moe::model {

// Counts bytes and asks now and then whether to go on. CancelledError when not.
class PackProgress {
 public:
  PackProgress(const ByteProgress& report, uint64_t bytes_total) : report_(report), bytes_total_(bytes_total) {}
  void add(uint64_t bytes);

 private:
  const ByteProgress& report_;
  uint64_t bytes_total_;
  uint64_t bytes_done_ = 0;
  uint64_t next_report_ = 0;
};

// An OutputFile that knows its CRC-32C.
class ChecksummedFile {
 public:
  ChecksummedFile(const std::string& path, PackProgress& progress) : file_(path), progress_(progress) {}
  void write(const void* data, size_t bytes);
  void commit() { file_.commit(); }
  uint32_t checksum() const { return checksum_; }
  uint64_t bytes() const { return file_.written_bytes(); }

 private:
  io::OutputFile file_;
  PackProgress& progress_;
  uint32_t checksum_ = 0;
};

// Reads `path` from the drive in runs of `record_bytes` and compares one checksum for each. Empty when all agree, else what
// differs first: a text that begins with the path.
std::string compare_checksums(const std::string& path, uint64_t file_bytes, uint64_t record_bytes,
                              std::span<const uint32_t> checksums, PackProgress& progress);

// Writes `text` under that name atomically.
void write_text_file(const std::string& path, const std::string& text);

// Calls fn(i) for i in [0, count) on several threads; rethrows the first error once all are done.
void run_parallel(int64_t count, int thread_count, const std::function<void(int64_t)>& fn);

}  // namespace flash_moe::model
