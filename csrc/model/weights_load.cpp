#include "model/weights_load.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "flash_moe/error.h"

namespace flash_moe::model {
namespace {

constexpr auto check_interval = std::chrono::milliseconds(20);

}  // namespace

ResidentLoad::ResidentLoad(std::vector<ReadTask> tasks, int64_t stage_count, int thread_count)
    : tasks_(std::move(tasks)), thread_count_(static_cast<size_t>(std::max(thread_count, 1))),
      tasks_left_(static_cast<size_t>(stage_count), 0) {
  int64_t stage = 0;
  for (const ReadTask& task : tasks_) {
    FM_CHECK(task.stage >= stage && task.stage < stage_count);
    stage = task.stage;
    bytes_total_ += task.bytes;
    ++tasks_left_[static_cast<size_t>(stage)];
  }
  const std::lock_guard lock(mutex_);
  start();
}

ResidentLoad::~ResidentLoad() {
  std::unique_lock lock(mutex_);
  stop(lock);
}

// As many threads as the system gives. With the mutex; no thread runs.
void ResidentLoad::start() {
  while (ready_stages_.load() < std::ssize(tasks_left_) && tasks_left_[static_cast<size_t>(ready_stages_.load())] == 0)
    ready_stages_.fetch_add(1);
  for (size_t i = 0; i < std::min(thread_count_, tasks_.size() - next_ + failed_.size()); ++i) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      break;
    }
    ++running_;
  }
}

void ResidentLoad::stop(std::unique_lock<std::mutex>& lock) {
  stopping_ = true;
  changed_.wait(lock, [this] { return running_ == 0; });
  stopping_ = false;
  for (std::thread& thread : std::exchange(threads_, {})) thread.join();  // they only have to return
}

void ResidentLoad::work() {
  std::unique_lock lock(mutex_);
  while (!stopping_ && !error_ && (next_ < tasks_.size() || !failed_.empty())) {
    size_t task = next_;
    if (failed_.empty()) {
      ++next_;
    } else {
      task = failed_.back();
      failed_.pop_back();
    }
    lock.unlock();
    std::exception_ptr error;
    try {
      tasks_[task].run();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) {
      failed_.push_back(task);
      if (!error_) error_ = std::move(error);
    } else {
      finish(task);
    }
  }
  --running_;
  changed_.notify_all();
}

void ResidentLoad::finish(size_t task) {
  bytes_done_.fetch_add(tasks_[task].bytes);
  if (--tasks_left_[static_cast<size_t>(tasks_[task].stage)] > 0) return;
  int64_t stage = ready_stages_.load();
  while (stage < std::ssize(tasks_left_) && tasks_left_[static_cast<size_t>(stage)] == 0) ++stage;
  if (stage == ready_stages_.load()) return;
  ready_stages_.store(stage, std::memory_order_release);
  changed_.notify_all();
}

void ResidentLoad::wait(int64_t stage, const std::function<void()>& check) {
  if (ready(stage)) return;
  std::unique_lock lock(mutex_);
  while (!ready(stage)) {
    if (error_ && running_ == 0) std::rethrow_exception(std::exchange(error_, nullptr));
    if (running_ == 0) {
      stop(lock);  // joins what has returned
      start();
      if (running_ == 0) {  // the system gives no thread
        ++running_;
        lock.unlock();
        work();
        lock.lock();
      }
      continue;
    }
    changed_.wait_for(lock, check_interval);
    lock.unlock();
    check();
    lock.lock();
  }
}

void ResidentLoad::wait_all(const ByteProgress& progress) {
  const auto report = [&] {
    if (progress && progress(bytes_done_.load(), bytes_total_)) throw CancelledError("loading the model was cancelled");
  };
  report();
  wait(std::ssize(tasks_left_) - 1, report);
  report();
}

}  // namespace flash_moe::model
