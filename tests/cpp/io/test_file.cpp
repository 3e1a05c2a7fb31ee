#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "io/temp_file.h"
#include "test.h"

using flash_moe::IoError;
using flash_moe::io::direct_hull;
using flash_moe::io::FaultPlan;
using flash_moe::io::File;
using test::holds;
using test::Pages;
using test::ScriptedFaults;
using test::TempFile;

namespace {

constexpr uint64_t file_bytes = 3 * 4096 + 777;

int calls = 0;

ssize_t seven_bytes(int fd, void* dst, size_t bytes, off_t offset) {
  return ::pread(fd, dst, bytes < 7 ? bytes : 7, offset);
}

ssize_t interrupted_twice_of_three(int fd, void* dst, size_t bytes, off_t offset) {
  if (++calls % 3 != 0) {
    errno = EINTR;
    return -1;
  }
  return ::pread(fd, dst, bytes < 1000 ? bytes : 1000, offset);
}

ssize_t fails_after_512(int fd, void* dst, size_t bytes, off_t offset) {
  if (offset >= 512) {
    errno = EIO;
    return -1;
  }
  return ::pread(fd, dst, bytes < 512 ? bytes : 512, offset);
}

ssize_t refuses_direct(int fd, void* dst, size_t bytes, off_t offset) {
#if defined(O_DIRECT)
  if ((::fcntl(fd, F_GETFL) & O_DIRECT) != 0) {
    ++calls;
    errno = EINVAL;
    return -1;
  }
#endif
  return ::pread(fd, dst, bytes, offset);
}

ssize_t stops_at_each_page(int fd, void* dst, size_t bytes, off_t offset) {
  ++calls;
  return ::pread(fd, dst, bytes > 4096 ? 4096 : bytes, offset);
}

FaultPlan::Attempt odd_short_reads(uint64_t number) { return {0, number % 2 == 0 ? 4099u : 513u}; }

// Every start and length around the page borders.
void check_all_misalignments(const File& file) {
  Pages memory(8 * 4096);
  for (const uint64_t offset : {0u, 1u, 17u, 511u, 512u, 4095u, 4096u, 4097u, 8191u}) {
    for (const uint64_t bytes : {0u, 1u, 2u, 511u, 4095u, 4096u, 4097u, 4777u}) {
      if (offset + bytes > file_bytes) continue;
      uint8_t* dst = memory.data() + 4096 + offset % 4096;
      std::fill_n(memory.data(), memory.size(), uint8_t{0xee});
      file.read_exact(dst, bytes, offset);
      CHECK(holds(dst, offset, bytes));
      CHECK(dst[-1] == 0xee && dst[bytes] == 0xee);
      std::fill_n(memory.data(), memory.size(), uint8_t{0xee});
      file.read_exact_direct(dst, bytes, offset);
      CHECK(holds(dst, offset, bytes));
      const auto hull = direct_hull(offset, bytes);
      CHECK(dst[-static_cast<ptrdiff_t>(hull.head) - 1] == 0xee);
      CHECK((dst - hull.head)[hull.bytes] == 0xee);
    }
  }
  // The file ends inside the hull.
  uint8_t* dst = memory.data() + 4096 + 5;
  file.read_exact_direct(dst, file_bytes - 4096 - 5, 4096 + 5);
  CHECK(holds(dst, 4096 + 5, file_bytes - 4096 - 5));
}

}  // namespace

TEST(hull_is_whole_pages_around_the_run) {
  CHECK(direct_hull(5, 4091).offset == 0 && direct_hull(5, 4091).bytes == 4096);
  CHECK(direct_hull(5, 4092).bytes == 8192 && direct_hull(5, 4092).head == 5);
  CHECK(direct_hull(8192, 4096).offset == 8192 && direct_hull(8192, 4096).bytes == 4096);
  CHECK(direct_hull(8192, 0).bytes == 0);
}

TEST(reads_are_exact_at_every_misalignment) {
  const TempFile temp(file_bytes);
  check_all_misalignments(File(temp.path()));
}

TEST(read_exact_survives_short_reads) {
  const TempFile temp(file_bytes);
  check_all_misalignments(File(temp.path(), seven_bytes));
  check_all_misalignments(File(temp.path(), stops_at_each_page));
  const auto faults = std::make_shared<ScriptedFaults>(odd_short_reads);
  check_all_misalignments(File(temp.path(), nullptr, faults));
  CHECK(faults->attempts() > 0);
}

TEST(read_exact_survives_interrupts) {
  const TempFile temp(file_bytes);
  calls = 0;
  check_all_misalignments(File(temp.path(), interrupted_twice_of_three));
  CHECK(calls > 100);
}

TEST(refused_direct_reads_become_buffered_ones) {
#if defined(O_DIRECT)
  const TempFile temp(file_bytes);
  const File file(temp.path(), refuses_direct);
  if (!file.direct_supported()) return;  // the file system refuses by itself
  calls = 0;
  check_all_misalignments(file);
  CHECK(calls == 1);
  CHECK(!file.direct_supported());
#endif
}

TEST(end_of_file_says_wanted_and_got) {
  const TempFile temp(1000);
  const File file(temp.path());
  Pages memory(8192);
  const std::string message =
      temp.path() + " at offset 900: wanted 200 bytes, got 100 (end of file; is the download";
  CHECK_THROWS(file.read_exact(memory.data(), 200, 900), IoError, message.c_str());
  CHECK_THROWS(file.read_exact(memory.data(), 1, 5000), IoError, "wanted 1 bytes, got 0");
  CHECK_THROWS(file.read_exact_direct(memory.data() + 900, 200, 900), IoError, "end of file");
  CHECK_THROWS(file.read_exact_direct(memory.data() + 904, 200, 5000), IoError, "end of file");
}

TEST(drive_error_says_where_and_what) {
  const TempFile temp(4096);
  const File file(temp.path(), fails_after_512);
  Pages memory(4096);
  CHECK_THROWS(file.read_exact(memory.data(), 4096, 0), IoError, "got 512 (");
  CHECK_THROWS(file.read_exact_direct(memory.data(), 4096, 0), IoError, "may be failing");
}

TEST(nth_attempt_fails_and_the_next_is_right) {
  const TempFile temp(file_bytes);
  Pages memory(4 * 4096);
  for (uint64_t nth = 1; nth <= 4; ++nth) {
    const auto faults = std::make_shared<flash_moe::io::FailNthRead>(nth);
    const File file(temp.path(), nullptr, faults);
    for (uint64_t read = 1; read <= 4; ++read) {
      bool threw = false;
      try {
        file.read_exact_direct(memory.data(), file_bytes, 0);
        CHECK(holds(memory.data(), 0, file_bytes));
      } catch (const IoError&) {
        threw = true;
      }
      CHECK(threw == (read == nth));
    }
  }
}

TEST(opening_what_is_no_file_fails_with_its_name) {
  CHECK_THROWS(File("/nonexistent/x"), IoError, "/nonexistent/x");
  CHECK_THROWS(File("/"), IoError, "wanted a regular file, got a folder");
}

TEST(a_file_cut_after_opening_is_an_error) {
  const TempFile temp(8192);
  const File file(temp.path());
  std::filesystem::resize_file(temp.path(), 4096);
  Pages memory(8192);
  CHECK_THROWS(file.read_exact(memory.data(), 8192, 0), IoError, "got 4096 (end of file");
  CHECK_THROWS(file.read_exact_direct(memory.data(), 8192, 0), IoError, "end of file");
}

#if defined(__linux__)
// Pages of [offset, offset + bytes) in the page cache; multiples of 4096.
size_t cached_pages(const std::string& path, uint64_t offset, uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  void* map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(offset));
  std::vector<unsigned char> pages(bytes / 4096);
  CHECK(::mincore(map, bytes, pages.data()) == 0);
  ::munmap(map, bytes);
  ::close(fd);
  return static_cast<size_t>(std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page % 2 == 1; }));
}

TEST(dropping_a_part_drops_all_of_it) {
  constexpr uint64_t mebibyte = uint64_t{1} << 20;
  const TempFile temp(8 * mebibyte);
  const File file(temp.path());
  CHECK(file.drop_cache(mebibyte + 4096, 3 * mebibyte));
  const size_t left = cached_pages(temp.path(), mebibyte + 4096, 3 * mebibyte);
  CHECK(file.drop_cache(0, 8 * mebibyte));
  // A file system in memory drops nothing.
  if (cached_pages(temp.path(), 0, 8 * mebibyte) == 0) CHECK(left == 0);
}
#endif

TEST(cache_hints_do_not_change_what_is_read) {
  const TempFile temp(file_bytes);
  const File file(temp.path());
  CHECK(file.drop_cache(0, file_bytes));
  CHECK(file.disable_read_ahead());
  CHECK(file.read_ahead(0, file_bytes));
  check_all_misalignments(file);
}
