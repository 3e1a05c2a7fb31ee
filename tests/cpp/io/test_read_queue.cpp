// One list of cases, run on every engine that this system has.
#include "io/read_queue.h"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <future>
#include <mutex>
#include <random>

#include "io/piece_queue.h"
#include "io/temp_file.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::IoError;
using flash_moe::io::FaultPlan;
using flash_moe::io::File;
using flash_moe::io::make_read_queue;
using flash_moe::io::make_thread_queue;
using flash_moe::io::QueueTuning;
using flash_moe::io::ReadQueue;
using flash_moe::io::ReadRequest;
using test::holds;
using test::Pages;
using test::ScriptedFaults;
using test::TempFile;

namespace {

constexpr uint64_t piece_bytes = 16 * 1024;  // small, so that small files are cut into many pieces
constexpr uint64_t file_bytes = 300 * 1024 + 777;

std::vector<std::string> engines() {
#if defined(FLASH_MOE_GCD)
  return {"threads", "gcd"};
#elif defined(__linux__)
  return {"threads", "uring"};
#else
  return {"threads"};
#endif
}

std::unique_ptr<ReadQueue> make_queue(const std::string& engine, int depth) {
  const QueueTuning tuning{depth, piece_bytes};
#if defined(FLASH_MOE_GCD)
  if (engine == "gcd") return flash_moe::io::make_gcd_queue(tuning);
#elif defined(__linux__)
  if (engine == "uring") {
    if (auto queue = flash_moe::io::make_uring_queue(tuning)) return queue;
    std::printf("  io_uring is refused here: threads in its place\n");
  }
#endif
  return make_thread_queue(tuning);
}

// A file shared by all cases; the page cache holds it, so they are quick.
const TempFile& shared_file() {
  static const TempFile temp(file_bytes);
  return temp;
}

// Reads one batch and waits. Rethrows its error.
void read_now(ReadQueue& queue, std::span<const ReadRequest> requests, bool urgent = true) {
  std::promise<std::exception_ptr> landed;
  queue.submit(requests, urgent, [&](std::exception_ptr error) { landed.set_value(error); });
  if (const auto error = landed.get_future().get()) std::rethrow_exception(error);
}

// Cases get a queue of every engine, by depth.
template <typename Case>
void on_every_engine(int depth, Case run) {
  for (const std::string& engine : engines()) {
    const auto queue = make_queue(engine, depth);
    CHECK(queue->depth() == depth);
    run(*queue);
  }
}

void check_misaligned_batches(ReadQueue& queue, const File& file, bool direct) {
  Pages memory(512 * 1024);
  for (const uint64_t offset : {0u, 1u, 511u, 4095u, 4096u, 16383u, 16385u}) {
    for (const uint64_t bytes : {0u, 1u, 4095u, 4097u, 16384u, 77777u, 250001u}) {
      uint8_t* dst = memory.data() + 4096 + offset % 4096;
      std::fill_n(dst - 1, bytes + 2, uint8_t{0xee});
      const ReadRequest request{&file, offset, bytes, dst, direct};
      read_now(queue, {&request, 1});
      CHECK(holds(dst, offset, bytes));
      if (!direct) CHECK(dst[-1] == 0xee && dst[bytes] == 0xee);
    }
  }
}

FaultPlan::Attempt interrupt_storm(uint64_t number) { return {number % 8 != 0 ? EINTR : 0}; }
FaultPlan::Attempt short_reads(uint64_t number) {
  constexpr size_t limits[] = {4096, 12288, 5000, 8192, 16383};
  return {0, limits[number % 5]};
}

// Holds the attempts of one file back until it is opened, to fill a queue on purpose.
class Gate final : public FaultPlan {
 public:
  Attempt next_attempt() override {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return {};
  }
  void wait_for_reader() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

}  // namespace

TEST(batches_are_exact_at_every_misalignment) {
  const File file(shared_file().path());
  on_every_engine(4, [&](ReadQueue& queue) {
    check_misaligned_batches(queue, file, false);
    check_misaligned_batches(queue, file, true);
  });
}

TEST(batches_survive_interrupts_and_short_reads) {
  for (const auto script : {interrupt_storm, short_reads}) {
    on_every_engine(3, [&](ReadQueue& queue) {
      const auto faults = std::make_shared<ScriptedFaults>(script);
      const File file(shared_file().path(), nullptr, faults);
      check_misaligned_batches(queue, file, false);
      check_misaligned_batches(queue, file, true);
      CHECK(faults->attempts() > 200);
    });
  }
}

TEST(end_of_file_fails_the_batch_with_its_place) {
  const File file(shared_file().path());
  Pages memory(64 * 1024);
  on_every_engine(2, [&](ReadQueue& queue) {
    for (const bool direct : {false, true}) {
      const ReadRequest request{&file, file_bytes - 777, 1000, memory.data() + (file_bytes - 777) % 4096,
                                direct};
      CHECK_THROWS(read_now(queue, {&request, 1}), IoError, "end of file");
      const ReadRequest good{&file, 0, 777, memory.data(), direct};
      read_now(queue, {&good, 1});
      CHECK(holds(memory.data(), 0, 777));
    }
  });
}

TEST(whichever_attempt_fails_the_batch_fails_and_the_next_is_right) {
  Pages memory(512 * 1024);
  on_every_engine(3, [&](ReadQueue& queue) {
    for (uint64_t nth = 1; nth <= 8; ++nth) {
      const auto faults = std::make_shared<flash_moe::io::FailNthRead>(nth);
      const File file(shared_file().path(), nullptr, faults);
      const ReadRequest requests[] = {{&file, 100, 70000, memory.data() + 100, true},
                                      {&file, 80100, 2000, memory.data() + 80100, true},
                                      {&file, 90112, 20000, memory.data() + 90112, true}};
      int failures = 0;
      for (int round = 0; round < 9; ++round) {
        try {
          read_now(queue, requests);
          for (const ReadRequest& each : requests) {
            CHECK(holds(static_cast<uint8_t*>(each.destination), each.offset, each.bytes));
          }
        } catch (const IoError& error) {
          ++failures;
          CHECK(std::string(error.what()).find(shared_file().path()) != std::string::npos);
        }
      }
      CHECK(failures == 1);
    }
  });
}

TEST(thousands_of_small_batches_all_land) {
  const File file(shared_file().path());
  constexpr size_t count = 4000;
  Pages memory(count * 4096);
  on_every_engine(8, [&](ReadQueue& queue) {
    std::mt19937_64 random(7);
    std::vector<uint64_t> offsets(count);
    std::atomic<size_t> landed{0};
    std::promise<void> all;
    for (size_t i = 0; i < count; ++i) {
      offsets[i] = random() % (file_bytes - 512);
      const ReadRequest request{&file, offsets[i], 512, memory.data() + i * 4096, false};
      queue.submit({&request, 1}, i % 3 == 0, [&](std::exception_ptr error) {
        CHECK(!error);
        if (landed.fetch_add(1) + 1 == count) all.set_value();
      });
    }
    all.get_future().get();
    bool right = true;
    for (size_t i = 0; i < count; ++i) right = right && holds(memory.data() + i * 4096, offsets[i], 512);
    CHECK(right);
  });
}

TEST(destruction_finishes_what_was_submitted) {
  const File file(shared_file().path());
  Pages memory(512 * 1024);
  for (const std::string& engine : engines()) {
    std::atomic<int> landed{0};
    {
      const auto queue = make_queue(engine, 2);
      for (uint64_t i = 0; i < 36; ++i) {
        const ReadRequest request{&file, i * 8192, 8192, memory.data() + i * 8192, true};
        queue->submit({&request, 1}, i % 2 == 0, [&](std::exception_ptr error) {
          CHECK(!error);
          landed.fetch_add(1);
        });
      }
    }
    CHECK(landed == 36);
    CHECK(holds(memory.data(), 0, 36 * 8192));
  }
}

TEST(urgent_batches_overtake_and_promoted_ones_too) {
  Pages memory(512 * 1024);
  const File file(shared_file().path());
  on_every_engine(1, [&](ReadQueue& queue) {
    const auto gate = std::make_shared<Gate>();
    const File gated(shared_file().path(), nullptr, gate);
    std::vector<int> order;  // one reader at depth 1: no lock needed but the promise
    std::promise<void> all;
    const auto done = [&](int number) {
      return [&, number](std::exception_ptr) {
        order.push_back(number);
        if (order.size() == 5) all.set_value();
      };
    };
    const ReadRequest block{&gated, 0, 4096, memory.data(), false};
    const ReadRequest plain{&file, 0, 4096, memory.data() + 8192, false};
    queue.submit({&block, 1}, false, done(0));
    gate->wait_for_reader();
    queue.submit({&plain, 1}, false, done(1));
    const auto dropped = queue.submit({&plain, 1}, false, done(99));
    const auto promoted = queue.submit({&plain, 1}, false, done(2));
    queue.submit({&plain, 1}, true, done(3));
    queue.promote(promoted);
    CHECK(queue.cancel(dropped));
    queue.submit({&plain, 1}, true, done(4));
    gate->open();
    all.get_future().get();
    CHECK((order == std::vector<int>{0, 3, 2, 4, 1}));
  });
}

TEST(done_may_submit) {
  const File file(shared_file().path());
  Pages memory(4096);
  on_every_engine(2, [&](ReadQueue& queue) {
    std::promise<void> all;
    const ReadRequest request{&file, 0, 512, memory.data(), false};
    int left = 50;
    std::function<void(std::exception_ptr)> again = [&](std::exception_ptr) {
      if (--left == 0) {
        all.set_value();
      } else {
        queue.submit({&request, 1}, true, again);
      }
    };
    queue.submit({&request, 1}, true, again);
    all.get_future().get();
    CHECK(left == 0);
  });
}

TEST(unknown_engines_and_depths_name_what_there_is) {
  CHECK_THROWS(make_read_queue({"aio", 0}), ConfigError, "got 'aio'");
  CHECK_THROWS(make_read_queue({"threads", -1}), ConfigError, "got -1");
  CHECK_THROWS(make_read_queue({"threads", 100000}), ConfigError, "got 100000");
  CHECK(make_read_queue({"auto", 0})->depth() > 0);
}
