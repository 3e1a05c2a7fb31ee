#include "store/expert_store.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include "base/aligned_memory.h"
#include "fake_experts.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::HostSlotArena;
using flash_moe::InternalError;
using flash_moe::IoError;
using flash_moe::io::FailNthRead;
using flash_moe::io::FaultPlan;
using flash_moe::io::make_read_queue;
using flash_moe::store::Access;
using flash_moe::store::ExpertStore;
using flash_moe::store::Lease;
using flash_moe::store::make_policy;
using test::FakeExperts;

namespace {

using Ids = std::vector<int32_t>;

// An arena that remembers which pages were given back.
class WatchedArena final : public flash_moe::SlotArena {
 public:
  WatchedArena(size_t slot_bytes, size_t slot_count) 
      : arena_(slot_bytes, slot_count, flash_moe::HugePages::no) {}
  uint8_t* slot(size_t index) const override { return arena_.slot(index); }
  size_t slot_bytes() const override { return arena_.slot_bytes(); }
  size_t slot_count() const override { return arena_.slot_count(); }
  void release(size_t index) override {
    ++released;
    arena_.release(index);
  }
  void touch(size_t index) override { arena_.touch(index); }
  std::atomic<size_t> released{0};

 private:
  HostSlotArena arena_;
};

// Holds every read back while it is shut.
class Gate final : public FaultPlan {
 public:
  Attempt next_attempt() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_; });
    return {};
  }
  void set(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
};

struct Fixture {
  std::shared_ptr<FakeExperts> experts;
  WatchedArena arena;
  std::unique_ptr<flash_moe::io::ReadQueue> queue;
  ExpertStore store;

  explicit Fixture(size_t capacity, std::shared_ptr<FaultPlan> faults = nullptr,
                   const char* policy = "lru", size_t slots = 64, int depth = 3)
      : experts(std::make_shared<FakeExperts>(std::move(faults))),
        arena(experts->slot_bytes(), slots),
        queue(make_read_queue({"threads", depth})),
        store(experts, arena, *queue, make_policy(policy, capacity), capacity) {}

  // Takes every expert of a lease and checks its bytes.
  bool all_right(Lease& lease, int64_t layer, const Ids& ids) const {
    std::vector<size_t> ready;
    while (!lease.all_taken()) lease.take_ready(ready, true);
    std::sort(ready.begin(), ready.end());
    bool right = ready.size() == ids.size();
    for (size_t i = 0; i < ready.size(); ++i) {
      right = right && ready[i] == i && experts->right(layer, ids[i], lease.slot(i));
    }
    return right;
  }
  bool acquire_right(int64_t layer, const Ids& ids, Access access = Access::decode) {
    Lease lease = store.acquire(layer, ids, access);
    return all_right(lease, layer, ids);
  }
};

Ids range(int32_t begin, int32_t count) {
  Ids ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), begin);
  return ids;
}

Ids random_ids(std::mt19937& random, int32_t experts, size_t count) {
  Ids ids = range(0, experts);
  std::shuffle(ids.begin(), ids.end(), random);
  ids.resize(count);
  return ids;
}

}  // namespace

TEST(misses_are_read_and_then_hit) {
  Fixture f(8);
  CHECK(f.acquire_right(1, {5, 2, 31}));
  CHECK(f.acquire_right(1, {31, 5, 7}));
  const auto stats = f.store.stats();
  CHECK(stats.misses == 4 && stats.hits == 2 && stats.joined == 0 && stats.evictions == 0);
  CHECK(stats.read_bytes == 4 * f.experts->expert_bytes(0));
  CHECK(stats.read_ns > 0 && stats.failed_reads == 0);
  f.store.reset_stats();
  CHECK(f.store.stats().misses == 0);
}

TEST(the_least_recently_used_expert_goes_first) {
  Fixture f(3);
  for (const int32_t id : {1, 2, 3, 1, 4}) CHECK(f.acquire_right(0, {id}));
  f.store.reset_stats();
  for (const int32_t id : {1, 3, 4}) CHECK(f.acquire_right(0, {id}));
  CHECK(f.store.stats().hits == 3);
  CHECK(f.acquire_right(0, {2}));
  CHECK(f.store.stats().misses == 1 && f.store.stats().evictions == 1);
}

TEST(a_read_in_flight_is_joined) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(8, gate);
  gate->set(false);
  Lease first = f.store.acquire(0, Ids{3, 4}, Access::decode);
  Lease second = f.store.acquire(0, Ids{4, 5}, Access::decode);
  std::vector<size_t> ready;
  first.take_ready(ready, false);
  CHECK(ready.empty() && !first.all_taken());
  gate->set(true);
  CHECK(f.all_right(first, 0, {3, 4}));
  CHECK(f.all_right(second, 0, {4, 5}));
  const auto stats = f.store.stats();
  CHECK(stats.joined == 1 && stats.misses == 3 && stats.hits == 0);
  CHECK(stats.read_bytes == 3 * f.experts->expert_bytes(0));
}

TEST(hits_are_handed_out_before_the_misses_land) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(8, gate);
  CHECK(f.acquire_right(0, {1, 2}));
  gate->set(false);
  Lease lease = f.store.acquire(0, Ids{9, 2, 1}, Access::decode);
  std::vector<size_t> ready;
  lease.take_ready(ready, true);
  CHECK((ready == std::vector<size_t>{1, 2}));
  CHECK(f.experts->right(0, 2, lease.slot(1)));
  gate->set(true);
  lease.take_ready(ready, true);
  CHECK(ready.back() == 0 && f.experts->right(0, 9, lease.slot(0)));
  CHECK(lease.all_taken());
  lease.take_ready(ready, true);
  CHECK(ready.size() == 3);
}

TEST(a_pinned_slot_is_never_evicted) {
  for (const char* policy : {"score", "lru", "clock", "slru"}) {
    Fixture f(6, nullptr, policy);
    const Ids pinned = {1, 2, 3};
    Lease lease = f.store.acquire(0, pinned, Access::decode);
    CHECK(f.all_right(lease, 0, pinned));
    for (int32_t id = 4; id < 32; ++id) CHECK(f.acquire_right(1, {id, (id + 7) % 32}));
    for (size_t i = 0; i < 3; ++i) CHECK(f.experts->right(0, pinned[i], lease.slot(i)));
    f.store.reset_stats();
    CHECK(f.acquire_right(0, pinned));
    CHECK(f.store.stats().hits == 3);
  }
}

TEST(the_policy_sees_what_the_router_said) {
  Fixture f(3, nullptr, "score");
  std::vector<float> logits(static_cast<size_t>(f.experts->expert_count(0)), 0.0f);
  logits[1] = 3;
  logits[2] = -3;
  logits[3] = 2;
  {
    Lease lease = f.store.acquire(0, Ids{3, 1, 2}, Access::decode, logits);
    CHECK(f.all_right(lease, 0, {3, 1, 2}));
  }
  CHECK(f.acquire_right(0, {4}));
  f.store.reset_stats();
  CHECK(f.acquire_right(0, {1, 3, 4}));
  CHECK(f.store.stats().hits == 3);
}

TEST(fewer_slots_than_asked_for_is_a_config_error) {
  Fixture f(3);
  CHECK_THROWS(f.store.acquire(0, range(0, 4), Access::decode), ConfigError,
               "wants 4 experts at once, the cache has 3 slots");
  CHECK(f.acquire_right(0, range(0, 3)));
  CHECK_THROWS(f.store.set_capacity(0), ConfigError, "wanted 1 to 64 slots, got 0");
  CHECK_THROWS(f.store.set_capacity(65), ConfigError, "got 65");
  CHECK(f.store.capacity() == 3);
  CHECK_THROWS(Fixture(65), ConfigError, "got 65");
}

TEST(ids_that_cannot_be_are_our_defect) {
  Fixture f(8);
  CHECK_THROWS(f.store.acquire(4, Ids{0}, Access::decode), InternalError, "layer");
  CHECK_THROWS(f.store.acquire(0, Ids{32}, Access::decode), InternalError, "id");
  CHECK_THROWS(f.store.acquire(0, Ids{-1}, Access::decode), InternalError, "id");
  CHECK_THROWS(f.store.acquire(0, Ids{3, 3}, Access::decode), InternalError, "seen");
  CHECK(f.acquire_right(0, {3}));
}

TEST(an_acquire_waits_for_others_leases) {
  Fixture f(4);
  auto held = std::make_unique<Lease>(f.store.acquire(0, range(0, 3), Access::decode));
  std::atomic<bool> done{false};
  std::thread other([&] {
    CHECK(f.acquire_right(1, range(0, 3)));
    done = true;
  });
  // A hit beside the one who waits passes.
  CHECK(f.acquire_right(0, {1}));
  CHECK(!done);
  held.reset();
  other.join();
  CHECK(done);
}

TEST(windows_through_a_small_cache_are_right) {
  Fixture f(5);
  for (int64_t layer = 0; layer < 4; ++layer) {
    for (int32_t begin = 0; begin + 5 <= 32; begin += 3) {
      CHECK(f.acquire_right(layer, range(begin, 5), begin % 2 == 0 ? Access::scan : Access::decode));
    }
  }
}

TEST(a_scan_does_not_flush_what_decode_uses) {
  for (const char* policy : {"score", "lru", "clock", "slru"}) {
    Fixture f(16, nullptr, policy);
    CHECK(f.acquire_right(0, range(0, 12)));
    CHECK(f.acquire_right(0, range(0, 12)));
    for (int32_t begin = 0; begin < 32; begin += 4) CHECK(f.acquire_right(1, range(begin, 4), Access::scan));
    f.store.reset_stats();
    CHECK(f.acquire_right(0, range(0, 12)));
    CHECK(f.store.stats().hits == 12);
  }
}

TEST(whichever_read_fails_the_next_acquire_is_right) {
  bool reached = true;
  for (uint64_t nth = 1; reached; ++nth) {
    const auto faults = std::make_shared<FailNthRead>(nth);
    Fixture f(6, faults);
    uint64_t failures = 0;
    for (int round = 0; round < 2; ++round) {
      for (const Ids& ids : {Ids{1, 2, 3, 4}, Ids{3, 4, 5, 6, 7}, Ids{8}}) {
        try {
          CHECK(f.acquire_right(round, ids));
        } catch (const IoError& error) {
          ++failures;
          CHECK(std::string(error.what()).find("at offset") != std::string::npos);
          CHECK(f.acquire_right(round, ids));
        }
      }
    }
    reached = faults->attempts() >= nth;
    CHECK(failures == (reached ? 1 : 0));
    CHECK(f.store.stats().failed_reads == failures);
    if (reached) CHECK(f.acquire_right(3, range(0, 6)));
  }
}

TEST(a_failed_read_reaches_everyone_who_waits_for_it) {
  class AllFail final : public FaultPlan {
   public:
    Attempt next_attempt() override {
      gate.next_attempt();
      return {failing ? EIO : 0};
    }
    Gate gate;
    std::atomic<bool> failing{true};
  };
  const auto faults = std::make_shared<AllFail>();
  Fixture f(4, faults);
  faults->gate.set(false);
  Lease first = f.store.acquire(0, Ids{1, 2}, Access::decode);
  Lease second = f.store.acquire(0, Ids{2, 3}, Access::decode);
  faults->gate.set(true);
  std::vector<size_t> ready;
  const auto drain = [&](Lease& lease) {
    while (!lease.all_taken()) lease.take_ready(ready, true);
  };
  CHECK_THROWS(drain(first), IoError, "at offset");
  CHECK_THROWS(drain(second), IoError, "at offset");
  CHECK_THROWS(drain(second), IoError, "at offset");
  while (f.store.stats().failed_reads < 3) std::this_thread::yield();
  faults->failing = false;
  // The leases above still hold their slots; with one left, new reads go elsewhere.
  CHECK(f.acquire_right(0, {2}));
  { const Lease gone = std::move(first); }
  { const Lease gone = std::move(second); }
  CHECK(f.acquire_right(0, range(0, 4)));
  CHECK(f.store.stats().failed_reads == 3);
}

TEST(a_lease_may_end_before_its_reads) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(4, gate);
  gate->set(false);
  { const Lease dropped = f.store.acquire(0, range(0, 4), Access::decode); }
  gate->set(true);
  CHECK(f.acquire_right(1, range(8, 4)));
  CHECK(f.acquire_right(0, range(0, 4)));
}

TEST(a_lease_tells_what_the_cache_had_not_kept) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(40, gate);
  CHECK(f.acquire_right(0, Ids{1, 2}));
  f.store.prefetch(0, Ids{3}, 1);
  while (f.store.stats().read_bytes < 3 * f.experts->expert_bytes(0)) std::this_thread::yield();
  gate->set(false);
  {
    const Lease first = f.store.acquire(0, Ids{1, 2, 3, 4}, Access::scan);
    const Lease second = f.store.acquire(0, Ids{1, 3, 4}, Access::scan);
    CHECK(first.fresh() == 2);   // one by the hint, one absent
    CHECK(second.fresh() == 1);  // which is on its way
    gate->set(true);
  }
  CHECK(f.acquire_right(0, Ids{1, 2, 3, 4}));
  CHECK(f.store.acquire(0, Ids{1, 2, 3, 4}, Access::scan).fresh() == 0);
}

TEST(released_items_make_room_while_their_lease_lasts) {
  Fixture f(4);
  Lease lease = f.store.acquire(0, range(0, 4), Access::scan);
  CHECK(f.all_right(lease, 0, range(0, 4)));
  f.store.prefetch(1, Ids{8}, 1);
  CHECK(f.store.stats().prefetched == 0);  // every slot is pinned
  const size_t first[] = {1, 2};
  lease.release(first);
  lease.release(first);  // no harm
  CHECK(f.store.stats().prefetched == 1);
  CHECK(f.acquire_right(1, Ids{8}));
  CHECK(f.store.stats().prefetch_used == 1 && f.store.stats().misses == 4);
  for (const int32_t i : {0, 3}) CHECK(f.experts->right(0, i, lease.slot(static_cast<size_t>(i))));
  { const Lease gone = std::move(lease); }
  CHECK(f.acquire_right(2, range(0, 4)));
}

TEST(prefetched_experts_are_joined_or_hit_and_counted) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(40, gate, "lru", 64, 1);
  gate->set(false);
  f.store.prefetch(2, Ids{1, 2, 3, 4, 5, 6}, 2);
  CHECK(f.store.stats().prefetched == 2);  // the others wait their turn
  Lease lease = f.store.acquire(2, Ids{1, 9}, Access::decode);
  gate->set(true);
  CHECK(f.all_right(lease, 2, {1, 9}));
  auto stats = f.store.stats();
  CHECK(stats.prefetch_used == 1 && stats.joined == 1 && stats.misses == 1);
  CHECK(stats.prefetched == 2);  // the pending ones were dropped with the acquire
  // 2 had not started: it was cancelled, and is not there.
  CHECK(f.acquire_right(2, {2}));
  CHECK(f.store.stats().misses == 2);

  f.store.reset_stats();
  f.store.prefetch(3, Ids{7, 8, 9, 10}, 4);
  while (f.store.stats().read_bytes < 4 * f.experts->expert_bytes(3)) std::this_thread::yield();
  CHECK(f.acquire_right(3, {7, 8, 20}));
  stats = f.store.stats();
  CHECK(stats.prefetched == 4 && stats.prefetch_used == 2 && stats.hits == 2 && stats.misses == 1);
  f.store.prefetch(3, Ids{7, 8}, 4);
  CHECK(f.store.stats().prefetched == 4);  // what is there is not read again
}

TEST(a_later_guess_corrects_an_earlier_one) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(40, gate, "lru", 64, 1);
  gate->set(false);
  f.store.prefetch(3, Ids{20}, 3);
  f.store.prefetch(2, Ids{1, 2, 3, 4}, 4);
  f.store.prefetch(2, Ids{1, 3, 5}, 4);  // 2 was queued and 4 waited for its turn: both are dropped
  CHECK(f.store.stats().prefetched == 5);
  gate->set(true);
  CHECK(f.acquire_right(2, Ids{1, 2, 3, 4, 5}));
  auto stats = f.store.stats();
  CHECK(stats.prefetch_used == 3 && stats.misses == 2 && stats.prefetch_late == 0);
  // Of another layer, and wanted by its second acquire only.
  const uint64_t all_bytes = 5 * f.experts->expert_bytes(2) + f.experts->expert_bytes(3);
  while (f.store.stats().read_bytes < all_bytes) std::this_thread::yield();
  CHECK(f.acquire_right(3, Ids{21}));
  CHECK(f.acquire_right(3, Ids{20}));
  CHECK(f.acquire_right(3, Ids{20}));
  stats = f.store.stats();
  CHECK(stats.prefetch_used == 3 && stats.prefetch_late == 1 && stats.misses == 3);
}

TEST(a_layer_is_held_when_all_of_it_is_there_or_on_its_way) {
  const auto gate = std::make_shared<Gate>();
  Fixture f(40, gate);
  const auto experts = static_cast<int32_t>(f.experts->expert_count(1));
  CHECK(experts < 40 && !f.store.holds_layer(1));
  CHECK(f.acquire_right(1, range(0, experts - 1)));
  CHECK(!f.store.holds_layer(1));
  gate->set(false);
  Lease last = f.store.acquire(1, Ids{experts - 1}, Access::decode);
  CHECK(f.store.holds_layer(1));
  gate->set(true);
  CHECK(f.all_right(last, 1, {experts - 1}));
  CHECK(f.store.holds_layer(1) && !f.store.holds_layer(0));
}

TEST(pending_hints_start_as_others_land) {
  Fixture f(40);
  f.store.prefetch(1, range(0, 8), 1);
  while (f.store.stats().read_bytes < 8 * f.experts->expert_bytes(1)) std::this_thread::yield();
  CHECK(f.acquire_right(1, range(0, 8)));
  CHECK(f.store.stats().prefetch_used == 8 && f.store.stats().misses == 0);
}

TEST(hints_take_at_most_a_quarter_of_the_slots_and_the_coldest) {
  Fixture f(8);
  const Ids live = range(0, 8);
  CHECK(f.acquire_right(0, live));
  CHECK(f.acquire_right(0, live));
  Lease lease = f.store.acquire(0, live, Access::decode);
  f.store.prefetch(1, range(0, 8), 8);  // all slots are pinned
  CHECK(f.store.stats().prefetched == 0);
  { const Lease gone = std::move(lease); }
  CHECK(f.acquire_right(0, Ids{0, 1, 2, 3}));
  f.store.prefetch(1, range(0, 8), 8);
  CHECK(f.store.stats().prefetched == 2);
  f.store.reset_stats();
  CHECK(f.acquire_right(0, Ids{6, 7, 0, 1, 2, 3}));
  CHECK(f.store.stats().hits == 6);
  f.store.clear();
  CHECK(f.acquire_right(0, live));
}

TEST(a_hint_that_fails_is_nobodys_error) {
  const auto faults = std::make_shared<FailNthRead>(1);
  Fixture f(8, faults);
  f.store.prefetch(1, Ids{4}, 1);
  while (f.store.stats().failed_reads == 0) std::this_thread::yield();
  CHECK(f.acquire_right(1, {4}));
}

TEST(shrinking_gives_pages_back_and_growing_takes_them) {
  Fixture f(32);
  CHECK(f.acquire_right(0, range(0, 32)));
  f.store.set_capacity(10);
  CHECK(f.store.capacity() == 10);
  CHECK(f.arena.released == 22);
  f.store.reset_stats();
  CHECK(f.acquire_right(0, range(22, 10)));  // the most recent ones stayed
  CHECK(f.store.stats().hits == 10);
  f.store.set_capacity(64);
  CHECK(f.acquire_right(0, range(0, 32)));
  CHECK(f.acquire_right(1, range(0, 32)));
  f.store.reset_stats();
  CHECK(f.acquire_right(0, range(0, 32)));
  CHECK(f.store.stats().hits == 32);
}

TEST(shrinking_waits_for_leases) {
  Fixture f(8);
  auto held = std::make_unique<Lease>(f.store.acquire(0, range(0, 6), Access::decode));
  CHECK(f.all_right(*held, 0, range(0, 6)));
  std::atomic<bool> done{false};
  std::thread shrink([&] {
    f.store.set_capacity(4);
    done = true;
  });
  while (f.store.capacity() != 4 || f.arena.released < 2) std::this_thread::yield();
  CHECK(!done);
  for (size_t i = 0; i < 6; ++i) CHECK(f.experts->right(0, static_cast<int32_t>(i), held->slot(i)));
  CHECK_THROWS(f.store.acquire(1, range(0, 5), Access::decode), ConfigError, "has 4 slots");
  held.reset();
  shrink.join();
  CHECK(f.arena.released == 4);
  CHECK(f.acquire_right(1, range(0, 4)));
}

TEST(clear_forgets_all_but_pinned_experts) {
  Fixture f(16);
  CHECK(f.acquire_right(0, range(0, 10)));
  const Lease lease = f.store.acquire(0, Ids{3}, Access::decode);
  f.store.clear();
  f.store.reset_stats();
  CHECK(f.acquire_right(0, range(0, 10)));
  CHECK(f.store.stats().hits == 1 && f.store.stats().misses == 9);
}

TEST(the_trace_is_what_was_asked_for_in_order) {
  Fixture f(16);
  CHECK(f.acquire_right(0, {1}));
  f.store.record_trace(true);
  CHECK(f.acquire_right(2, {9, 4, 7}));
  CHECK(f.acquire_right(3, {0}));
  const std::vector<Ids> want = {{2, 9, 4, 7}, {3, 0}};
  CHECK(f.store.take_trace() == want);
  CHECK(f.store.take_trace().empty());
  f.store.record_trace(false);
  CHECK(f.acquire_right(3, {0}));
  CHECK(f.store.take_trace().empty());
}

namespace {

// Threads that acquire, prefetch and check, while the capacity goes up and down. 20 slots always suffice for the four.
void storm(const char* policy, bool resize, std::shared_ptr<FaultPlan> faults, uint64_t& failures) {
  Fixture f(24, std::move(faults), policy);
  std::atomic<uint64_t> failed{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(100 + t);
      for (int step = 0; step < 150; ++step) {
        const auto layer = static_cast<int64_t>(random() % 4);
        const Ids ids = random_ids(random, 32, 1 + random() % 5);
        if (random() % 4 == 0) f.store.prefetch((layer + 1) % 4, random_ids(random, 32, 3), 2);
        try {
          Lease lease = f.store.acquire(layer, ids, random() % 5 == 0 ? Access::scan : Access::decode);
          if (random() % 8 == 0) continue;
          if (!f.all_right(lease, layer, ids)) failed += 1000000;
        } catch (const IoError&) {
          ++failed;
        }
      }
    });
  }
  std::thread resizer([&] {
    std::mt19937 random(9);
    while (resize && !stop) f.store.set_capacity(20 + random() % 40);
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  resizer.join();
  f.store.set_capacity(8);
  CHECK(f.acquire_right(0, range(0, 8)));
  const auto stats = f.store.stats();
  CHECK(stats.hits + stats.misses + stats.joined > 1000);
  failures = failed;
}

}  // namespace

TEST(four_threads_get_what_they_ask_for) {
  for (const char* policy : {"score", "lru", "clock", "slru"}) {
    uint64_t failures = 0;
    storm(policy, false, nullptr, failures);
    CHECK(failures == 0);
  }
}

TEST(four_threads_and_a_resizer_get_what_they_ask_for) {
  uint64_t failures = 0;
  storm("lru", true, nullptr, failures);
  CHECK(failures == 0);
}

TEST(four_threads_with_a_failing_drive_get_errors_or_right_bytes) {
  class EveryNinth final : public FaultPlan {
   public:
    Attempt next_attempt() override { return {count_.fetch_add(1) % 9 == 8 && count_ < 900 ? EIO : 0}; }

   private:
    std::atomic<int> count_{0};
  };
  uint64_t failures = 0;
  storm("lru", true, std::make_shared<EveryNinth>(), failures);
  CHECK(failures > 0 && failures < 1000000);
}
