#pragma once
// Page-aligned anonymous memory whose pages are taken on first touch and can be given back, and the SlotArena over it
// for backends that compute in plain host memory.

#include <cstddef>
#include <cstdint>

#include "base/slot.h"

namespace flash_moe {

size_t page_bytes();

enum class HugePages : uint8_t { no, if_possible };

// Zeroed. Movable. Thread-compatible.
class AlignedMemory {
 public:
  AlignedMemory() = default;
  // Reserves address space only. Throws ConfigError where the system does not give that much. Huge pages where the
  // system has them: fewer faults and TLB misses, and whole 2 MB units resident.
  explicit AlignedMemory(size_t bytes, HugePages huge = HugePages::no);
  AlignedMemory(AlignedMemory&& other) noexcept;
  AlignedMemory& operator=(AlignedMemory&& other) noexcept;
  ~AlignedMemory();

  uint8_t* data() const { return data_; }
  size_t size_bytes() const { return bytes_; }

  // Gives the whole pages inside [offset, offset + bytes) back; they read as zero afterwards, and small ones take their
  // place when touched.
  void release(size_t offset, size_t bytes);
  // Takes the pages of [offset, offset + bytes) now; huge ones again, if the memory has them. What lies there stays.
  void touch(size_t offset, size_t bytes);

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  HugePages huge_ = HugePages::no;
};

class HostSlotArena final : public SlotArena {
 public:
  // `slot_bytes` is rounded up to pages.
  HostSlotArena(size_t slot_bytes, size_t slot_count, HugePages huge = HugePages::if_possible);

  uint8_t* slot(size_t index) const override { return memory_.data() + index * slot_bytes_; }
  size_t slot_bytes() const override { return slot_bytes_; }
  size_t slot_count() const override { return slot_count_; }
  void release(size_t index) override { memory_.release(index * slot_bytes_, slot_bytes_); }
  void touch(size_t index) override { memory_.touch(index * slot_bytes_, slot_bytes_); }

 private:
  size_t slot_bytes_;
  size_t slot_count_;
  AlignedMemory memory_;
};

}  // namespace flash_moe
