#include <utility>

#include "store/expert_store_impl.h"

namespace flash_moe::store {

Lease::Lease(std::unique_ptr<State> state) : state_(std::move(state)) {}
Lease::Lease(Lease&&) noexcept = default;

Lease& Lease::operator=(Lease&& other) noexcept {
  Lease old(std::move(*this));
  state_ = std::move(other.state_);
  return *this;
}

Lease::~Lease() {
  if (!state_) return;
  ExpertStore::Impl& impl = *state_->impl;
  const std::lock_guard lock(impl.mutex);
  for (const State::Item& item : state_->items)
    if (!item.released) impl.unpin(item.slot);
  impl.notify();
}

size_t Lease::size() const { return state_->items.size(); }

size_t Lease::fresh() const { return state_->fresh; }

const uint8_t* Lease::slot(size_t i) const {
  return state_->impl->arena.slot(state_->items.at(i).slot);
}

void Lease::release(std::span<const size_t> items) {
  ExpertStore::Impl& impl = *state_->impl;
  const std::lock_guard lock(impl.mutex);
  for (const size_t i : items) {
    State::Item& item = state_->items.at(i);
    if (!std::exchange(item.released, true)) impl.unpin(item.slot);
  }
  impl.start_hints();
  impl.notify();
}

bool Lease::all_taken() const { return state_->open.empty(); }

void Lease::take_ready(std::vector<size_t>& out, bool block) {
  State& state = *state_;
  if (state.open.empty()) return;
  const size_t before = out.size();
  const auto take_if = [&](const auto& is_ready) {
    std::erase_if(state.open, [&](uint32_t index) {
      if (!is_ready(state.items[index])) return false;
      out.push_back(index);
      return true;
    });
  };
  // What the acquire found ready needs no lock: the pin keeps it so.
  take_if([](const State::Item& item) { return item.ready; });
  if (out.size() > before) return;

  ExpertStore::Impl& impl = *state.impl;
  std::unique_lock lock(impl.mutex);
  uint64_t wait_begin = 0;
  for (;;) {
    for (const uint32_t index : state.open) {
      const Slot& slot = impl.slots[state.items[index].slot];
      if (slot.state == SlotState::failed) std::rethrow_exception(slot.error);
    }
    take_if([&impl](const State::Item& item) {
      return impl.slots[item.slot].state == SlotState::ready;
    });
    if (out.size() > before || !block) break;
    if (wait_begin == 0) wait_begin = now_ns();
    impl.wait(lock);
  }
  if (wait_begin != 0) impl.stats.wait_ns += now_ns() - wait_begin;
}

}  // namespace flash_moe::store
