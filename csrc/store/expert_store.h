#pragma once
// Routed experts in a bounded number of slots: the only owner of what lies in a slot.
//
// DESIGN. Data: a table key(layer, expert) -> slot, slot states {empty, reading, ready}, pin counts, one Policy. All
// of it is behind one mutex that is never held across a read or a computation. A lease pins its slots, so no
// slot that a kernel may read is ever overwritten. A read in flight is joined, not repeated. A failed read empties
// its slot, wakes everyone who waits for it with the same IoError, and leaves the store usable.
// Hints (prefetch) are reads that nobody waits for. They enter the policy at its cold end; until the acquire of their
// layer comes they give way only to demand; that acquire drops those that have not started and that it does not want.
// Locks: the store's mutex may be held while the queue's is taken, never the other way.
// What cannot happen: a slot that is `ready` and not wholly read; two slots with one key; an eviction of a pinned slot.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/slot.h"
#include "format/expert_map.h"
#include "io/read_queue.h"
#include "store/policy.h"

namespace flash_moe::store {

enum class Access : uint8_t {
  decode,  // counts for the policy
  scan,    // prefill: does not push out what decode uses
};

struct StoreStats {
  uint64_t hits = 0;       // experts found ready
  uint64_t joined = 0;     // experts whose read was already in flight
  uint64_t misses = 0;     // experts that had to be read
  uint64_t prefetched = 0;       // reads started by hints
  uint64_t prefetch_used = 0;    // hints that the acquire of their layer then wanted
  uint64_t prefetch_late = 0;    // those that it did not want, but a later one, while they were still there
  uint64_t read_bytes = 0;
  uint64_t read_ns = 0;          // sum over reads, submit to landing
  uint64_t wait_ns = 0;          // time that callers stood in Lease::take_ready
  uint64_t evictions = 0;
  uint64_t failed_reads = 0;
};

class ExpertStore;

// Experts pinned in their slots until the lease ends. Movable. One thread at a time.
class Lease {
 public:
  Lease(Lease&&) noexcept;
  Lease& operator=(Lease&&) noexcept;
  ~Lease();

  size_t size() const;
  // Items that the cache had not kept: absent, on their way, or there by a hint.
  size_t fresh() const;
  // Slot address of the i-th id asked for. Valid to read from when take_ready returned i until it is released.
  const uint8_t* slot(size_t i) const;
  // Indices that are ready and were not returned before, appended to `out`. Blocks until there is one, unless `block` is
  // false or all were returned. Throws IoError if a read of this lease failed.
  void take_ready(std::vector<size_t>& out, bool block);
  bool all_taken() const;
  // Unpins items that take_ready returned, before the lease ends: their slots may be filled with something else from now on.
  void release(std::span<const size_t> items);

 private:
  friend class ExpertStore;
  struct State;
  explicit Lease(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Thread-safe.
class ExpertStore {
 public:
  // `capacity`: slots in use at first (those of index 0 to capacity - 1), 1 to arena.slot_count(); ConfigError otherwise.
  // `direct`: reads pass by the page cache where the file system lets them.
  ExpertStore(std::shared_ptr<const format::ExpertMap> map, SlotArena& arena, io::ReadQueue& queue,
              std::unique_ptr<Policy> policy, size_t capacity, bool direct = true);
  ~ExpertStore();  // waits for reads in flight; leases must have ended

  // Pins `ids` (distinct) of `layer`: hits at once, joins reads in flight, starts the others.
  // Needs ids.size() slots that nobody else pins; waits for others' leases to end if they do not suffice, and
  // throws ConfigError if they never could (capacity below ids.size()). A thread that waits while it holds another
  // lease itself can wait for ever: keep the leases held together below the capacity.
  // `logits` [rows, experts of the layer]: what the router said, for policies that look at it; may be empty.
  Lease acquire(int64_t layer, std::span<const int32_t> ids, Access access, std::span<const float> logits = {});

  // Hints, likeliest first: starts reads for ids that are absent, into free or evictable slots, at most `limit` in flight;
  // the others start as those land. Takes the place of earlier hints for the layer: of those that are not named again, reads that
  // have not started are dropped. Never waits. One that finds no slot free or long unused waits for the next read to land or
  // the next item to be released.
  void prefetch(int64_t layer, std::span<const int32_t> ids, size_t limit);

  // Whether every expert of the layer is there or on its way, so that hints for it would find nothing to do.
  bool holds_layer(int64_t layer) const;

  // Changes the number of slots in use, live. Shrinking evicts unpinned slots, waits for pinned ones, and gives
  // their memory back before it returns.
  void set_capacity(size_t capacity);
  size_t capacity() const;

  // Forgets every unpinned expert (for measurements from cold); waits for reads that no lease holds.
  void clear();
  StoreStats stats() const;
  void reset_stats();
  // The ids of all acquires since the call, for `cache-sim`: rows of layer, ids. Empty unless recording.
  void record_trace(bool on);
  std::vector<std::vector<int32_t>> take_trace();  // each row: layer, then ids in the order asked for

 private:
  friend class Lease;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace flash_moe::store
