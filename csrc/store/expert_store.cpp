#include "store/expert_store_impl.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"

namespace flash_moe::store {
namespace {

// More hints than this are not remembered: they would be late.
constexpr size_t pending_hints_max = 256;

}  // namespace

ExpertStore::Impl::Impl(std::shared_ptr<const format::ExpertMap> map_in, SlotArena& arena_in,
                        io::ReadQueue& queue_in, std::unique_ptr<Policy> policy_in,
                        size_t capacity_in, bool direct_in)
    : map(std::move(map_in)),
      arena(arena_in),
      queue(queue_in),
      policy(std::move(policy_in)),
      direct(direct_in),
      capacity(capacity_in),
      in_use(capacity_in),
      slots(arena_in.slot_count()) {
  FM_CHECK(arena.slot_bytes() >= map->slot_bytes());
  free.reserve(slots.size());
  parked.reserve(slots.size());
  for (size_t i = slots.size(); i > 0; --i) {
    const auto slot = static_cast<uint32_t>(i - 1);
    slots[slot].state = slot < capacity ? SlotState::free : SlotState::parked;
    (slot < capacity ? free : parked).push_back(slot);
  }
  policy->on_capacity(capacity);
}

void ExpertStore::Impl::check_ids(int64_t layer, std::span<const int32_t> ids) {
  FM_CHECK(layer >= 0 && layer < map->layer_count());
  const int64_t experts = map->expert_count(layer);
  if (seen.size() < static_cast<size_t>(experts)) seen.resize(static_cast<size_t>(experts), 0);
  ++seen_round;
  for (const int32_t id : ids) {
    FM_CHECK(id >= 0 && id < experts);
    FM_CHECK(std::exchange(seen[static_cast<size_t>(id)], seen_round) != seen_round);  // distinct
  }
}

void ExpertStore::Impl::wait(std::unique_lock<std::mutex>& lock) {
  ++waiters;
  changed.wait(lock);
  --waiters;
}

// Whether every absent id would find a slot. What a shrinking store is to give back is not room.
bool ExpertStore::Impl::has_room(int64_t layer, std::span<const int32_t> ids) const {
  size_t wanted = excess();
  const size_t available = free.size() + evictable;
  bool absent = false;
  for (const int32_t id : ids) {
    const uint32_t slot = table.find(expert_key(layer, id));
    if (slot == KeyTable::none) {
      absent = true;
      ++wanted;
    } else if (slots[slot].state == SlotState::ready && slots[slot].pins == 0) {
      ++wanted;  // it counts as evictable, and will not be
    }
  }
  return !absent || wanted <= available;
}

void ExpertStore::Impl::wait_for_room(std::unique_lock<std::mutex>& lock, int64_t layer,
                                      std::span<const int32_t> ids) {
  for (;;) {
    if (ids.size() > capacity) {
      throw ConfigError("expert cache: layer " + std::to_string(layer) + " wants " +
                        std::to_string(ids.size()) + " experts at once, the cache has " +
                        std::to_string(capacity) + " slots; give it more memory");
    }
    if (has_room(layer, ids)) return;
    ++room_waiters;
    wait(lock);
    --room_waiters;
  }
}

void ExpertStore::Impl::end_hint(uint32_t slot) {
  if (!slots[slot].hint) return;
  slots[slot].hint = false;
  std::erase(hint_slots, slot);
  if (slots[slot].state == SlotState::reading) --hints_in_flight;
}

void ExpertStore::Impl::pin_present(uint32_t slot, Access access) {
  Slot& found = slots[slot];
  if (found.hint) {
    ++stats.prefetch_used;
    if (found.state == SlotState::reading) queue.promote(found.batch);
    end_hint(slot);
  }
  if (std::exchange(found.in_vain, false)) ++stats.prefetch_late;
  if (found.state == SlotState::ready) {
    ++stats.hits;
    if (found.pins == 0) --evictable;
  } else {
    ++stats.joined;
  }
  ++found.pins;
  policy->on_hit(found.key, access == Access::scan);
}

uint32_t ExpertStore::Impl::pin_absent(ExpertKey key, Access access, uint64_t now) {
  ++stats.misses;
  const uint32_t slot = slot_for_demand();
  Slot& taken = slots[slot];
  taken.key = key;
  taken.state = SlotState::reading;
  taken.in_vain = false;
  taken.pins = 1;
  taken.started_ns = now;
  table.set(key, slot);
  policy->on_insert(key, access == Access::scan);
  ++in_flight;
  return slot;
}

void ExpertStore::Impl::unpin(uint32_t slot) {
  Slot& held = slots[slot];
  if (--held.pins > 0) return;
  if (held.state == SlotState::ready) ++evictable;
  if (held.state == SlotState::failed) free_slot(slot);
}

bool ExpertStore::Impl::find_victim(bool spare_hints, uint32_t& slot) {
  ExpertKey key = 0;
  const auto may_evict = [this, spare_hints](ExpertKey candidate) {
    const Slot& held = slots[table.find(candidate)];
    return held.state == SlotState::ready && held.pins == 0 && !(spare_hints && held.hint);
  };
  if (evictable == 0 || !policy->victim(may_evict, key)) return false;
  slot = table.find(key);
  return true;
}

uint32_t ExpertStore::Impl::slot_for_demand() {
  if (free.empty()) {
    uint32_t victim = 0;
    FM_CHECK(find_victim(true, victim) || find_victim(false, victim));
    ++stats.evictions;
    evict(victim);
  }
  const uint32_t slot = free.back();
  free.pop_back();
  return slot;
}

// A hint takes the slot that a miss would take, but none of another hint, and none that somebody waits for.
bool ExpertStore::Impl::slot_for_hint(uint32_t& slot) {
  if (room_waiters > 0 || excess() > 0) return false;
  if (hint_slots.size() >= std::max<size_t>(1, capacity / 4)) return false;
  if (free.empty()) {
    uint32_t victim = 0;
    if (!find_victim(true, victim)) return false;
    ++stats.evictions;
    evict(victim);
  }
  slot = free.back();
  free.pop_back();
  return true;
}

void ExpertStore::Impl::free_slot(uint32_t slot) {
  slots[slot].state = SlotState::free;
  slots[slot].error = nullptr;
  free.push_back(slot);
}

// Takes the slot's expert out of the table and the policy.
void ExpertStore::Impl::forget(uint32_t slot) {
  end_hint(slot);
  policy->on_evict(slots[slot].key);
  table.set(slots[slot].key, KeyTable::none);
}

void ExpertStore::Impl::evict(uint32_t slot) {
  FM_CHECK(slots[slot].state == SlotState::ready && slots[slot].pins == 0);
  --evictable;
  forget(slot);
  free_slot(slot);
}

// A hint whose read never started.
void ExpertStore::Impl::drop_hint(uint32_t slot) {
  --in_flight;
  forget(slot);
  free_slot(slot);
}

// The acquire of `layer` has come: hints for it that it did not want are worth nothing any more.
void ExpertStore::Impl::answer_hints(int64_t layer) {
  const auto of_layer = [layer](ExpertKey key) { return key_layer(key) == layer; };
  std::erase_if(pending_hints, of_layer);
  for (size_t i = hint_slots.size(); i > 0; --i) {
    const uint32_t slot = hint_slots[i - 1];
    if (!of_layer(slots[slot].key)) continue;
    if (slots[slot].state == SlotState::reading && queue.cancel(slots[slot].batch)) {
      drop_hint(slot);
    } else {
      end_hint(slot);
      slots[slot].in_vain = true;
    }
  }
}

// Hints for `layer` that the ids of the last check_ids do not name again. Queued ones all go: who is named is queued anew.
void ExpertStore::Impl::correct_hints(int64_t layer) {
  std::erase_if(pending_hints, [layer](ExpertKey key) { return key_layer(key) == layer; });
  for (size_t i = hint_slots.size(); i > 0; --i) {
    const uint32_t slot = hint_slots[i - 1];
    const Slot& hinted = slots[slot];
    if (key_layer(hinted.key) != layer || seen[key_expert(hinted.key)] == seen_round) continue;
    if (hinted.state == SlotState::reading && queue.cancel(hinted.batch)) drop_hint(slot);
  }
}

void ExpertStore::Impl::start_hints() {
  while (!pending_hints.empty() && hints_in_flight < hint_limit) {
    const ExpertKey key = pending_hints.front();
    uint32_t slot = 0;
    const bool absent = table.find(key) == KeyTable::none;
    if (absent && !slot_for_hint(slot)) return;
    pending_hints.pop_front();
    if (!absent) continue;
    Slot& taken = slots[slot];
    taken.key = key;
    taken.state = SlotState::reading;
    taken.hint = true;
    taken.in_vain = false;
    taken.started_ns = now_ns();
    table.set(key, slot);
    policy->on_insert(key, true);
    hint_slots.push_back(slot);
    ++in_flight;
    ++hints_in_flight;
    ++stats.prefetched;
    try {
      taken.batch = submit(slot, key, false);
    } catch (...) {  // nobody waits for a hint; the acquire of this expert will report what is wrong
      drop_hint(slot);
      pending_hints.clear();
      return;
    }
  }
}

io::ReadQueue::Batch ExpertStore::Impl::submit(uint32_t slot, ExpertKey key, bool urgent) {
  thread_local std::vector<format::Extent> extents;
  thread_local std::vector<io::ReadRequest> requests;
  map->extents(key_layer(key), key_expert(key), extents);
  requests.clear();
  uint8_t* const base = arena.slot(slot);
  for (const format::Extent& extent : extents) {
    FM_CHECK(extent.slot_offset + extent.bytes <= arena.slot_bytes());
    requests.push_back({map->files()[extent.file].get(), extent.file_offset, extent.bytes,
                        base + extent.slot_offset, direct});
  }
  return queue.submit(requests, urgent,
                      [this, slot](const std::exception_ptr& error) { landed(slot, error); });
}

void ExpertStore::Impl::start_read(uint32_t slot, ExpertKey key) {
  try {
    submit(slot, key, true);
  } catch (...) {
    landed(slot, std::current_exception());
  }
}

void ExpertStore::Impl::landed(uint32_t slot, const std::exception_ptr& error) {
  const uint64_t now = now_ns();
  const std::lock_guard lock(mutex);
  Slot& read = slots[slot];
  stats.read_ns += now - read.started_ns;
  --in_flight;
  if (error) {
    ++stats.failed_reads;
    forget(slot);
    read.state = SlotState::failed;
    read.error = error;
    if (read.pins == 0) free_slot(slot);
  } else {
    stats.read_bytes += map->expert_bytes(key_layer(read.key));
    if (read.hint) --hints_in_flight;
    read.state = SlotState::ready;
    if (read.pins == 0) ++evictable;
  }
  start_hints();
  notify();
}

ExpertStore::ExpertStore(std::shared_ptr<const format::ExpertMap> map, SlotArena& arena,
                         io::ReadQueue& queue, std::unique_ptr<Policy> policy, size_t capacity,
                         bool direct) {
  if (capacity == 0 || capacity > arena.slot_count()) {
    throw ConfigError("expert cache: wanted 1 to " + std::to_string(arena.slot_count()) +
                      " slots, got " + std::to_string(capacity));
  }
  impl_ = std::make_shared<Impl>(std::move(map), arena, queue, std::move(policy), capacity, direct);
}

ExpertStore::~ExpertStore() {
  std::unique_lock lock(impl_->mutex);
  impl_->pending_hints.clear();
  while (impl_->in_flight > 0) impl_->wait(lock);
}

Lease ExpertStore::acquire(int64_t layer, std::span<const int32_t> ids, Access access,
                           std::span<const float> logits) {
  Impl& impl = *impl_;
  auto state = std::make_unique<Lease::State>();
  state->impl = impl_;
  state->items.resize(ids.size());
  state->open.resize(ids.size());
  size_t absent = 0;
  {
    std::unique_lock lock(impl.mutex);
    impl.check_ids(layer, ids);
    impl.wait_for_room(lock, layer, ids);
    const auto experts = static_cast<size_t>(impl.map->expert_count(layer));
    FM_CHECK(logits.size() % experts == 0);
    impl.policy->on_acquire(static_cast<uint32_t>(layer), logits, logits.size() / experts, access == Access::scan);
    // All that is present is pinned before the first slot is taken, so that no miss evicts a hit of its own acquire.
    for (size_t i = 0; i < ids.size(); ++i) {
      Lease::State::Item& item = state->items[i];
      state->open[i] = static_cast<uint32_t>(i);
      item.slot = impl.table.find(expert_key(layer, ids[i]));
      if (item.slot == KeyTable::none) {
        ++absent;
        continue;
      }
      item.ready = impl.slots[item.slot].state == SlotState::ready;
      if (!item.ready || impl.slots[item.slot].hint) ++state->fresh;
      impl.pin_present(item.slot, access);
    }
    state->fresh += absent;
    const uint64_t now = absent > 0 ? now_ns() : 0;
    state->misses.reserve(absent);
    for (size_t i = 0; absent > 0 && i < ids.size(); ++i) {
      if (state->items[i].slot != KeyTable::none) continue;
      state->items[i].slot = impl.pin_absent(expert_key(layer, ids[i]), access, now);
      state->misses.push_back(static_cast<uint32_t>(i));
    }
    if (!(impl.hint_slots.empty() && impl.pending_hints.empty())) impl.answer_hints(layer);
    if (impl.recording) {
      std::vector<int32_t>& row = impl.trace.emplace_back();
      row.reserve(ids.size() + 1);
      row.push_back(static_cast<int32_t>(layer));
      row.insert(row.end(), ids.begin(), ids.end());
    }
  }
  for (const uint32_t i : state->misses) {
    impl.start_read(state->items[i].slot, expert_key(layer, ids[i]));
  }
  return Lease(std::move(state));
}

void ExpertStore::prefetch(int64_t layer, std::span<const int32_t> ids, size_t limit) {
  Impl& impl = *impl_;
  const std::lock_guard lock(impl.mutex);
  impl.check_ids(layer, ids);
  impl.hint_limit = limit;
  impl.correct_hints(layer);
  for (const int32_t id : ids) {
    const ExpertKey key = expert_key(layer, id);
    if (impl.pending_hints.size() >= pending_hints_max) break;
    if (impl.table.find(key) == KeyTable::none) impl.pending_hints.push_back(key);
  }
  impl.start_hints();
}

bool ExpertStore::holds_layer(int64_t layer) const {
  const Impl& impl = *impl_;
  const std::lock_guard lock(impl.mutex);
  for (int64_t id = 0; id < impl.map->expert_count(layer); ++id)
    if (impl.table.find(expert_key(layer, static_cast<int32_t>(id))) == KeyTable::none) return false;
  return true;
}

void ExpertStore::set_capacity(size_t capacity) {
  Impl& impl = *impl_;
  if (capacity == 0 || capacity > impl.slots.size()) {
    throw ConfigError("expert cache: wanted 1 to " + std::to_string(impl.slots.size()) +
                      " slots, got " + std::to_string(capacity));
  }
  const std::lock_guard resizing(impl.resizing);
  std::unique_lock lock(impl.mutex);
  impl.capacity = capacity;
  impl.policy->on_capacity(capacity);
  for (; impl.in_use < capacity; ++impl.in_use) {
    impl.free_slot(impl.parked.back());
    impl.parked.pop_back();
  }
  impl.notify();
  while (impl.in_use > capacity) impl.park_some(lock);
}

// Takes idle slots out of use, at most the excess, and gives their pages back without the lock. Waits if there is none.
void ExpertStore::Impl::park_some(std::unique_lock<std::mutex>& lock) {
  std::vector<uint32_t> idle;
  while (excess() > 0) {
    uint32_t victim = 0;
    if (free.empty()) {
      if (!find_victim(true, victim) && !find_victim(false, victim)) break;
      ++stats.evictions;
      evict(victim);
    }
    idle.push_back(free.back());
    slots[free.back()].state = SlotState::parked;
    free.pop_back();
    --in_use;
  }
  if (idle.empty()) {
    ++room_waiters;
    wait(lock);
    --room_waiters;
    return;
  }
  lock.unlock();
  for (const uint32_t slot : idle) arena.release(slot);
  lock.lock();
  parked.insert(parked.end(), idle.begin(), idle.end());
}

size_t ExpertStore::capacity() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->capacity;
}

void ExpertStore::clear() {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  impl.pending_hints.clear();
  const auto unpinned_read = [](const Slot& slot) {
    return slot.state == SlotState::reading && slot.pins == 0;
  };
  while (std::any_of(impl.slots.begin(), impl.slots.end(), unpinned_read)) impl.wait(lock);
  for (uint32_t slot = 0; slot < impl.slots.size(); ++slot) {
    if (impl.slots[slot].state == SlotState::ready && impl.slots[slot].pins == 0) impl.evict(slot);
  }
  impl.notify();
}

StoreStats ExpertStore::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->stats;
}

void ExpertStore::reset_stats() {
  const std::lock_guard lock(impl_->mutex);
  impl_->stats = {};
}

void ExpertStore::record_trace(bool on) {
  const std::lock_guard lock(impl_->mutex);
  impl_->recording = on;
  if (!on) impl_->trace.clear();
}

std::vector<std::vector<int32_t>> ExpertStore::take_trace() {
  const std::lock_guard lock(impl_->mutex);
  return std::exchange(impl_->trace, {});
}

}  // namespace flash_moe::store
