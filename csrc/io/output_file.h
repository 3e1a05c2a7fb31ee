#pragma once
// A file that appears under its name only when it is whole: written beside it, synced, then renamed.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "flash_moe/error.h"

namespace flash_moe::io {

// Same contract as write(2). Tests pass their own to return short writes, EINTR and ENOSPC.
using WriteFn = ssize_t (*)(int fd, const void* data, size_t bytes);

// What a file's name ends in while it is written; a killed process leaves such files behind.
inline constexpr const char* partial_suffix = ".partial";

class OutputFile {
 public:
  // Opens path + partial_suffix, emptied. Throws IoError.
  explicit OutputFile(std::string path, WriteFn write_fn = nullptr);
  // Without commit(), the partial file is removed and `path` stays as it was.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Appends every byte, or throws IoError with path, offset, bytes wanted and written, and the reason; then only the
  // destructor makes sense.
  void write_exact(const void* data, size_t bytes);
  // Syncs, closes and renames. Throws IoError; `path` then is what it was before.
  void commit();
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  std::string path_;
  std::string partial_path_;
  WriteFn write_fn_;
  int fd_ = -1;
  uint64_t written_bytes_ = 0;
};

}  // namespace flash_moe::io
