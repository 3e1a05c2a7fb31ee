#include "io/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "io/file.h"

namespace flash_moe::io {
namespace {

[[noreturn]] void fail(const std::string& what, int error) {
  const char* hint = error == ENOSPC || error == EDQUOT ? "; free some space on the drive"
                     : error == EFBIG                   ? "; is there a limit on file sizes?"
                     : error == EACCES || error == EROFS ? "; is the folder writable?"
                                                         : "";
  throw IoError(what + " (" + std::system_category().message(error) + hint + ")");
}

// Makes a rename last through a crash. File systems that cannot sync a folder have nothing to sync.
void sync_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int fd = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

OutputFile::OutputFile(std::string path, WriteFn write_fn)
    : path_(std::move(path)),
      partial_path_(path_ + partial_suffix),
      write_fn_(write_fn ? write_fn : &::write) {
  fd_ = ::open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("create " + partial_path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_path_.c_str());
}

void OutputFile::write_exact(const void* data, size_t bytes) {
  FM_CHECK(fd_ >= 0);
  const auto* from = static_cast<const uint8_t*>(data);
  size_t done = 0;
  while (done < bytes) {
    const ssize_t put = write_fn_(fd_, from + done, std::min(bytes - done, attempt_bytes_max));
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
  FM_CHECK(fd_ >= 0);
  if (::fsync(fd_) != 0) fail("fsync " + partial_path_, errno);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(partial_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(partial_path_.c_str());
    fail("rename " + partial_path_ + " to " + path_, error);
  }
  sync_folder_of(path_);
}

}  // namespace flash_moe::io
