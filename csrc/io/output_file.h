#pragma once
// A file that appears under its name only when it is whole: written beside it, synced, then renamed.

#include <cstddef>
#include <cstdint>
#include <string>

namespace flash_moe::io {

class OutputFile {
 public:
  // Opens "<path>.partial", emptied. Throws IoError.
  explicit OutputFile(std::string path);
  // Without commit(), the partial file is removed and `path` stays as it was.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Appends every byte, or throws IoError with path, offset, bytes wanted and written, and the reason.
  void write_exact(const void* data, size_t bytes);
  // Syncs, closes and renames. Throws IoError; `path` then is what it was before.
  void commit();
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  std::string path_;
  std::string partial_path_;
  int fd_ = -1;
  uint64_t written_bytes_ = 0;
};

}  // namespace flash_moe::io
