#pragma once
// Memory that the expert store fills and a backend reads: the one thing both of them know.

#include <cstddef>
#include <cstdint>

namespace flash_moe {

// A row of equal slots in one mapping, each page-aligned. A backend supplies it (plain pages, GPU-visible
// pages, pinned memory); the store decides what lies in which slot.
// Thread-compatible: `slot` may be called from any thread; the others by the store's owner only.
class SlotArena {
 public:
  virtual ~SlotArena() = default;
  // Address of slot `index`; stable for the life of the arena.
  virtual uint8_t* slot(size_t index) const = 0;
  virtual size_t slot_bytes() const = 0;  // a multiple of the page
  virtual size_t slot_count() const = 0;  // address space reserved; pages are taken on first touch
  // Gives the pages of slot `index` back to the system; its address stays valid.
  virtual void release(size_t index) = 0;
  // Takes the pages of slot `index` now, so that a later read does not pay for them.
  virtual void touch(size_t index) = 0;
};

}  // namespace flash_moe
