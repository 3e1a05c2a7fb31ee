#include "io/output_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "test.h"

using flash_moe::IoError;
using flash_moe::io::OutputFile;

namespace {

class TempFolder {
 public:
  TempFolder() {
    path_ = (std::filesystem::temp_directory_path() / "flash_moe_test_XXXXXX").string();
    if (!::mkdtemp(path_.data())) std::perror("mkdtemp");
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_text(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.write_exact(text.data(), text.size());
  file.commit();
}

int calls = 0;

ssize_t three_bytes_and_interrupts(int fd, const void* data, size_t bytes) {
  if (++calls % 2 == 0) {
    errno = EINTR;
    return -1;
  }
  return ::write(fd, data, bytes < 3 ? bytes : 3);
}

ssize_t full_after_5(int fd, const void* data, size_t bytes) {
  if (++calls > 1) {
    errno = ENOSPC;
    return -1;
  }
  return ::write(fd, data, bytes < 5 ? bytes : 5);
}

}  // namespace

TEST(a_committed_file_has_every_byte) {
  const TempFolder folder;
  const std::string path = folder.file("a");
  calls = 0;
  OutputFile file(path, three_bytes_and_interrupts);
  file.write_exact("hello, ", 7);
  file.write_exact("", 0);
  file.write_exact("world", 5);
  CHECK(file.written_bytes() == 12);
  CHECK(!std::filesystem::exists(path));
  file.commit();
  CHECK(content(path) == "hello, world");
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST(a_full_drive_leaves_the_old_file) {
  const TempFolder folder;
  const std::string path = folder.file("a");
  write_text(path, "old");
  {
    calls = 0;
    OutputFile file(path, full_after_5);
    CHECK_THROWS(file.write_exact("0123456789", 10), IoError, "wanted 10 bytes, wrote 5 (");
  }
  CHECK(content(path) == "old");
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST(what_is_not_committed_goes_away) {
  const TempFolder folder;
  const std::string path = folder.file("a");
  { OutputFile(path).write_exact("x", 1); }
  CHECK(!std::filesystem::exists(path));
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST(a_failed_rename_leaves_nothing_behind) {
  const TempFolder folder;
  const std::string path = folder.file("a");
  std::filesystem::create_directory(path);
  OutputFile file(path);
  file.write_exact("x", 1);
  CHECK_THROWS(file.commit(), IoError, ".partial to ");
  CHECK(std::filesystem::is_directory(path));
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST(a_folder_that_is_not_there_is_named) {
  CHECK_THROWS(OutputFile("/nonexistent/a"), IoError, "create /nonexistent/a.partial");
}
