#pragma once
// What the expert store and its leases share; for expert_store.cpp and lease.cpp alone.

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "store/expert_store.h"
#include "store/key_lists.h"

namespace flash_moe::store {

inline uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

enum class SlotState : uint8_t {
  parked,   // not in use, its pages given back
  free,
  reading,  // in the table and the policy, not evictable
  ready,    // in the table and the policy, evictable while not pinned
  failed,   // not in the table any more; freed when its last lease ends
};

struct Slot {
  ExpertKey key = 0;
  SlotState state = SlotState::parked;
  bool hint = false;     // read for a hint that no acquire has answered yet
  bool in_vain = false;  // read for a hint whose acquire did not want it, and not used since
  uint32_t pins = 0;
  uint64_t started_ns = 0;  // of its read
  io::ReadQueue::Batch batch = 0;  // of a hint's read
  std::exception_ptr error;
};

struct ExpertStore::Impl {
  Impl(std::shared_ptr<const format::ExpertMap> map, SlotArena& arena, io::ReadQueue& queue,
       std::unique_ptr<Policy> policy, size_t capacity, bool direct);

  // All of these want the mutex held.
  void check_ids(int64_t layer, std::span<const int32_t> ids);
  bool has_room(int64_t layer, std::span<const int32_t> ids) const;
  void wait_for_room(std::unique_lock<std::mutex>& lock, int64_t layer,
                     std::span<const int32_t> ids);
  void pin_present(uint32_t slot, Access access);
  uint32_t pin_absent(ExpertKey key, Access access, uint64_t now);
  void unpin(uint32_t slot);
  uint32_t slot_for_demand();
  bool slot_for_hint(uint32_t& slot);
  bool find_victim(bool spare_hints, uint32_t& slot);
  void evict(uint32_t slot);
  void forget(uint32_t slot);
  void free_slot(uint32_t slot);
  void answer_hints(int64_t layer);
  void correct_hints(int64_t layer);
  void end_hint(uint32_t slot);
  void drop_hint(uint32_t slot);
  void start_hints();
  void park_some(std::unique_lock<std::mutex>& lock);
  void wait(std::unique_lock<std::mutex>& lock);
  void notify() {
    if (waiters > 0) changed.notify_all();
  }
  size_t excess() const { return in_use > capacity ? in_use - capacity : 0; }

  // These take the mutex.
  void landed(uint32_t slot, const std::exception_ptr& error);

  // With or without the mutex.
  io::ReadQueue::Batch submit(uint32_t slot, ExpertKey key, bool urgent);
  void start_read(uint32_t slot, ExpertKey key);

  const std::shared_ptr<const format::ExpertMap> map;
  SlotArena& arena;
  io::ReadQueue& queue;
  const std::unique_ptr<Policy> policy;
  const bool direct;

  std::mutex resizing;  // one set_capacity at a time; taken before `mutex`
  mutable std::mutex mutex;
  std::condition_variable changed;  // a slot became ready, failed, free or evictable, or the capacity changed
  size_t waiters = 0;
  size_t room_waiters = 0;  // of them, acquires and a shrinking set_capacity
  size_t capacity = 0;
  size_t in_use = 0;     // slots that are not parked; above `capacity` while shrinking
  size_t evictable = 0;  // slots that are ready and not pinned
  size_t in_flight = 0;
  size_t hints_in_flight = 0;
  size_t hint_limit = 0;
  std::vector<uint64_t> seen;  // by expert: the last check_ids that saw it, `seen_round` of the ids of the last one
  uint64_t seen_round = 0;
  KeyTable table;
  std::vector<Slot> slots;
  std::vector<uint32_t> free;
  std::vector<uint32_t> parked;
  std::vector<uint32_t> hint_slots;  // those with `hint`
  std::deque<ExpertKey> pending_hints;
  StoreStats stats;
  bool recording = false;
  std::vector<std::vector<int32_t>> trace;
};

struct Lease::State {
  struct Item {
    uint32_t slot = 0;
    bool ready = false;  // found ready by the acquire
    bool released = false;
  };
  std::shared_ptr<ExpertStore::Impl> impl;
  std::vector<Item> items;
  std::vector<uint32_t> open;    // indices of items not taken yet
  std::vector<uint32_t> misses;  // indices of items whose reads this lease started
  size_t fresh = 0;
};

}  // namespace flash_moe::store
