#include "base/aligned_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace flash_moe {
namespace {

#if defined(MAP_NORESERVE)
constexpr int map_flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
constexpr int map_flags = MAP_PRIVATE | MAP_ANONYMOUS;
#endif
constexpr size_t huge_page_bytes = size_t{2} << 20;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// A hint: kernels without huge pages refuse it, and nothing is lost.
void advise_huge([[maybe_unused]] uint8_t* address, [[maybe_unused]] size_t bytes,
                 [[maybe_unused]] bool wanted) {
#if defined(MADV_HUGEPAGE)
  ::madvise(address, bytes, wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}

}  // namespace

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

AlignedMemory::AlignedMemory(size_t bytes, HugePages huge)
    : bytes_(round_up(bytes, page_bytes())), huge_(huge) {
  if (bytes_ == 0) return;
  // Huge pages need an aligned start, which mmap does not promise.
  const size_t extra = huge == HugePages::if_possible ? huge_page_bytes : 0;
  void* map = ::mmap(nullptr, bytes_ + extra, PROT_READ | PROT_WRITE, map_flags, -1, 0);
  if (map == MAP_FAILED) {
    throw ConfigError("reserving " + std::to_string(bytes_) + " bytes of address space: " +
                      std::system_category().message(errno) +
                      "; is there a limit on virtual memory, ulimit -v?");
  }
  data_ = static_cast<uint8_t*>(map);
  if (extra == 0) return;
  const size_t before = round_up(reinterpret_cast<uintptr_t>(map), extra) -
                        reinterpret_cast<uintptr_t>(map);
  if (before > 0) ::munmap(data_, before);
  data_ += before;
  if (extra > before) ::munmap(data_ + bytes_, extra - before);
  advise_huge(data_, bytes_, true);
}

AlignedMemory::AlignedMemory(AlignedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      huge_(other.huge_) {}

AlignedMemory& AlignedMemory::operator=(AlignedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(huge_, other.huge_);
  return *this;
}

AlignedMemory::~AlignedMemory() {
  if (data_) ::munmap(data_, bytes_);
}

void AlignedMemory::release(size_t offset, size_t bytes) {
  FM_CHECK(offset <= bytes_ && bytes <= bytes_ - offset);
  const size_t begin = round_up(offset, page_bytes());
  const size_t end = (offset + bytes) / page_bytes() * page_bytes();
  if (begin >= end) return;
  // Otherwise the kernel could put a huge page back over what was just given up.
  if (huge_ == HugePages::if_possible) advise_huge(data_ + begin, end - begin, false);
#if defined(__APPLE__)
  // MADV_DONTNEED keeps the pages there; a new mapping in their place does not.
  void* map = ::mmap(data_ + begin, end - begin, PROT_READ | PROT_WRITE, map_flags | MAP_FIXED, -1, 0);
  FM_CHECK(map != MAP_FAILED);
#else
  FM_CHECK(::madvise(data_ + begin, end - begin, MADV_DONTNEED) == 0);
#endif
}

void AlignedMemory::touch(size_t offset, size_t bytes) {
  FM_CHECK(offset <= bytes_ && bytes <= bytes_ - offset);
  if (bytes == 0) return;
  const size_t begin = offset / page_bytes() * page_bytes();
  const size_t end = std::min(round_up(offset + bytes, page_bytes()), bytes_);
  if (huge_ == HugePages::if_possible) advise_huge(data_ + begin, end - begin, true);
#if defined(MADV_POPULATE_WRITE)
  if (::madvise(data_ + begin, end - begin, MADV_POPULATE_WRITE) == 0) return;
#endif
  for (size_t at = begin; at < end; at += page_bytes()) {
    volatile uint8_t* byte = data_ + at;
    *byte = *byte;
  }
}

HostSlotArena::HostSlotArena(size_t slot_bytes, size_t slot_count, HugePages huge)
    : slot_bytes_(round_up(slot_bytes, page_bytes())), slot_count_(slot_count) {
  if (slot_bytes_ == 0 || slot_count > std::numeric_limits<size_t>::max() / 2 / slot_bytes_) {
    throw ConfigError("slots: wanted " + std::to_string(slot_count) + " of " +
                      std::to_string(slot_bytes) + " bytes, which no address space holds");
  }
  memory_ = AlignedMemory(slot_bytes_ * slot_count, huge);
}

}  // namespace flash_moe
