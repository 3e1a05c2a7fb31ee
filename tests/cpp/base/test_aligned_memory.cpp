#include "base/aligned_memory.h"

#include <algorithm>
#include <limits>

#include "base/cgroup.h"
#include "flash_moe/error.h"
#include "test.h"

using flash_moe::AlignedMemory;
using flash_moe::ConfigError;
using flash_moe::HostSlotArena;
using flash_moe::HugePages;
using flash_moe::InternalError;
using flash_moe::page_bytes;
using flash_moe::process_resident_bytes;

namespace {

constexpr size_t mib = size_t{1} << 20;
constexpr size_t big = 64 * mib;
// What the process may take meanwhile for its own ends.
constexpr size_t slack = 4 * mib;
#if defined(FLASH_MOE_EMULATED)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

}  // namespace

TEST(memory_is_page_aligned_zeroed_and_rounded_up) {
  for (const HugePages huge : {HugePages::no, HugePages::if_possible}) {
    const AlignedMemory memory(3 * page_bytes() + 1, huge);
    CHECK(reinterpret_cast<uintptr_t>(memory.data()) % page_bytes() == 0);
    CHECK(memory.size_bytes() == 4 * page_bytes());
    CHECK(std::all_of(memory.data(), memory.data() + memory.size_bytes(), [](uint8_t x) { return x == 0; }));
  }
}

TEST(pages_are_taken_on_touch_and_given_back_on_release) {
  for (const HugePages huge : {HugePages::no, HugePages::if_possible}) {
    AlignedMemory memory(big, huge);
    const uint64_t before = process_resident_bytes();
    CHECK(before > 0);
    memory.touch(0, big);
    const uint64_t full = process_resident_bytes();
    // qemu-user says yes to every madvise and does nothing.
    CHECK(kEmulated || full + slack > before + big);
    CHECK(full < before + big + slack);
    memory.data()[10 * mib] = 7;
    memory.touch(10 * mib, page_bytes());
    CHECK(memory.data()[10 * mib] == 7);
    memory.release(big / 2, big / 2);
    const uint64_t half = process_resident_bytes();
    CHECK(half < before + big / 2 + slack);
    CHECK(memory.data()[10 * mib] == 7);
    memory.release(0, big / 2);
    CHECK(process_resident_bytes() < before + slack);
    CHECK(memory.data()[10 * mib] == 0);
  }
}

TEST(release_leaves_pages_that_are_only_half_inside) {
  AlignedMemory memory(4 * page_bytes());
  std::fill_n(memory.data(), memory.size_bytes(), uint8_t{9});
  memory.release(page_bytes() / 2, 2 * page_bytes());
  CHECK(memory.data()[page_bytes() - 1] == 9);
  CHECK(memory.data()[page_bytes()] == 0);
  CHECK(memory.data()[2 * page_bytes() - 1] == 0);
  CHECK(memory.data()[2 * page_bytes()] == 9);
  memory.release(1, 2);
  CHECK(memory.data()[1] == 9);
}

TEST(moving_hands_the_memory_over) {
  AlignedMemory first(page_bytes());
  first.data()[0] = 5;
  AlignedMemory second(std::move(first));
  AlignedMemory third;
  third = std::move(second);
  CHECK(third.data()[0] == 5 && third.size_bytes() == page_bytes());
}

TEST(ranges_outside_are_our_defect) {
  AlignedMemory memory(page_bytes());
  CHECK_THROWS(memory.release(1, page_bytes()), InternalError, "bytes");
  CHECK_THROWS(memory.touch(2 * page_bytes(), 0), InternalError, "bytes");
}

TEST(slots_are_equal_apart_and_released_one_by_one) {
  HostSlotArena arena(page_bytes() + 1, 3, HugePages::no);
  CHECK(arena.slot_bytes() == 2 * page_bytes() && arena.slot_count() == 3);
  CHECK(arena.slot(1) == arena.slot(0) + arena.slot_bytes());
  for (size_t i = 0; i < 3; ++i) {
    arena.touch(i);
    std::fill_n(arena.slot(i), arena.slot_bytes(), static_cast<uint8_t>(i + 1));
  }
  arena.release(1);
  CHECK(arena.slot(0)[arena.slot_bytes() - 1] == 1);
  CHECK(arena.slot(1)[0] == 0 && arena.slot(1)[arena.slot_bytes() - 1] == 0);
  CHECK(arena.slot(2)[0] == 3);
}

TEST(an_arena_beyond_the_address_space_is_a_config_error) {
  CHECK_THROWS(HostSlotArena(mib, std::numeric_limits<size_t>::max() / 2), ConfigError, "slots");
  CHECK_THROWS(HostSlotArena(0, 3), ConfigError, "slots");
  CHECK_THROWS(AlignedMemory(size_t{1} << 62), ConfigError, "address space");
}
