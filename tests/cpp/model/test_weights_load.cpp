#include "model/weights_load.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::CancelledError;
using flash_moe::IoError;
using flash_moe::model::ReadTask;
using flash_moe::model::ResidentLoad;

namespace {

// Opened once, for good.
class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = false;
};

void nothing() {}

}  // namespace

TEST(stages_become_ready_one_after_another) {
  std::vector<Gate> gates(3);
  std::vector<ReadTask> tasks;
  for (int64_t stage = 0; stage < 3; ++stage) {
    Gate& gate = gates[static_cast<size_t>(stage)];
    tasks.push_back({stage, 10, [&gate] { gate.pass(); }});
    tasks.push_back({stage, 10, nothing});
  }
  ResidentLoad load(std::move(tasks), 3, 4);
  CHECK(!load.ready(0));
  gates[1].open();
  gates[0].open();
  load.wait(1, nothing);
  CHECK(load.ready(0) && load.ready(1) && !load.ready(2));
  load.wait(0, [] { CHECK(false); });  // nothing to wait for
  gates[2].open();
  load.wait(2, nothing);
  CHECK(load.ready(2));
}

TEST(a_stage_without_tasks_is_as_ready_as_the_one_before) {
  const ResidentLoad none({}, 3, 2);
  CHECK(none.ready(2));
  Gate gate;
  std::vector<ReadTask> tasks;
  tasks.push_back({2, 1, [&gate] { gate.pass(); }});
  ResidentLoad load(std::move(tasks), 5, 2);
  CHECK(load.ready(1) && !load.ready(2));
  gate.open();
  load.wait(4, nothing);
}

TEST(an_error_goes_to_who_waits_and_the_next_wait_reads_again) {
  std::atomic<int> attempts = 0;
  std::atomic<int> others = 0;
  std::vector<ReadTask> tasks;
  for (int i = 0; i < 20; ++i) tasks.push_back({0, 1, [&others] { ++others; }});
  tasks.push_back({1, 1, [&attempts] {
                     if (++attempts <= 2) throw IoError("attempt " + std::to_string(attempts));
                   }});
  for (int i = 0; i < 20; ++i) tasks.push_back({2, 1, [&others] { ++others; }});
  ResidentLoad load(std::move(tasks), 3, 3);
  CHECK_THROWS(load.wait(2, nothing), IoError, "attempt 1");
  CHECK_THROWS(load.wait_all(nullptr), IoError, "attempt 2");
  load.wait_all(nullptr);
  CHECK(load.ready(2) && attempts == 3 && others == 40);
}

TEST(who_waits_may_give_up_and_the_reading_goes_on) {
  Gate gate;
  std::vector<ReadTask> tasks;
  tasks.push_back({0, 8, [&gate] { gate.pass(); }});
  ResidentLoad load(std::move(tasks), 1, 1);
  int calls = 0;
  const auto stop = [&calls] {
    if (++calls == 2) throw CancelledError("enough");
  };
  CHECK_THROWS(load.wait(0, stop), CancelledError, "enough");
  CHECK_THROWS(load.wait_all([](uint64_t, uint64_t) { return true; }), CancelledError, "cancelled");
  gate.open();
  uint64_t done = 0;
  uint64_t total = 0;
  load.wait_all([&](uint64_t now, uint64_t all) {
    done = now;
    total = all;
    return false;
  });
  CHECK(done == 8 && total == 8);
}

TEST(the_destructor_leaves_the_rest_unread) {
  Gate gate;
  std::atomic<int> run = 0;
  {
    std::vector<ReadTask> tasks;
    for (int i = 0; i < 1000; ++i) {
      tasks.push_back({0, 1, [&] {
                         if (++run == 3) gate.open();
                         gate.pass();
                         std::this_thread::sleep_for(std::chrono::milliseconds(1));
                       }});
    }
    const ResidentLoad load(std::move(tasks), 1, 3);
    gate.pass();
  }
  CHECK(run >= 3 && run < 1000);
}

TEST(many_may_wait) {
  std::atomic<int> failures = 1;
  std::vector<ReadTask> tasks;
  for (int64_t stage = 0; stage < 50; ++stage) {
    tasks.push_back({stage, 1, [stage, &failures] {
                       if (stage == 25 && failures-- > 0) throw IoError("once");
                     }});
  }
  ResidentLoad load(std::move(tasks), 50, 2);
  std::atomic<int> errors = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int64_t stage = 0; stage < 50; ++stage) {
        try {
          load.wait(stage, nothing);
        } catch (const IoError&) {
          ++errors;
          --stage;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(errors == 1 && load.ready(49));
}
