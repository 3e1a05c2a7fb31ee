#include "io/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "flash_moe/error.h"

namespace flash_moe::io {
namespace {

// Linux writes no more than 0x7ffff000 bytes at once; this is below every system's limit.
constexpr size_t kWriteMax = size_t{1} << 30;

[[noreturn]] void fail(const std::string& what, int error) {
  throw IoError(what + ": " + std::system_category().message(error));
}

}  // namespace

OutputFile::OutputFile(std::string path) : path_(std::move(path)), partial_path_(path_ + ".partial") {
  fd_ = ::open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("create " + partial_path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_path_.c_str());
}

void OutputFile::write_exact(const void* data, size_t bytes) {
  const auto* from = static_cast<const uint8_t*>(data);
  size_t done = 0;
  while (done < bytes) {
    const ssize_t put = ::write(fd_, from + done, std::min(bytes - done, kWriteMax));
    if (put > 0) {
      done += static_cast<size_t>(put);
      continue;
    }
    if (put < 0 && errno == EINTR) continue;
    const int error = put < 0 ? errno : ENOSPC;
    fail("write " + partial_path_ + " at offset " + std::to_string(written_bytes_) + ": wanted " +
             std::to_string(bytes) + " bytes, wrote " + std::to_string(done),
         error);
  }
  written_bytes_ += bytes;
}

void OutputFile::commit() {
  if (::fsync(fd_) != 0) fail("fsync " + partial_path_, errno);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(partial_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(partial_path_.c_str());
    fail("rename " + partial_path_ + " to " + path_, error);
  }
}

}  // namespace flash_moe::io
