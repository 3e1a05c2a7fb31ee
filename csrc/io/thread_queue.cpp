// Reads by a fixed number of threads that block in pread(2): works everywhere, and each copy from the page
// cache runs on a core of its own.

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "io/piece_queue.h"

namespace flash_moe::io {
namespace {

class ThreadQueue final : public ReadQueue {
 public:
  explicit ThreadQueue(QueueTuning tuning) : pieces_(tuning.piece_bytes) {
    threads_.reserve(static_cast<size_t>(tuning.depth));
    try {
      for (int i = 0; i < tuning.depth; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~ThreadQueue() override { stop(); }

  std::string name() const override { return "threads"; }
  int depth() const override { return static_cast<int>(threads_.size()); }

  Batch submit(std::span<const ReadRequest> requests, bool urgent, Done done) override {
    PieceQueue::Added added;
    {
      const std::lock_guard lock(mutex_);
      added = pieces_.add(requests, urgent, std::move(done));
    }
    if (added.pieces >= threads_.size()) {
      wake_.notify_all();
    } else {
      for (size_t i = 0; i < added.pieces; ++i) wake_.notify_one();
    }
    return added.id;
  }

  void promote(Batch batch) override {
    const std::lock_guard lock(mutex_);
    pieces_.promote(batch);
  }

  bool cancel(Batch batch) override {
    const std::lock_guard lock(mutex_);
    return pieces_.cancel(batch);
  }

 private:
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || !pieces_.empty(); });
      if (pieces_.empty()) return;
      const Piece piece = pieces_.take();
      std::exception_ptr error;
      if (!PieceQueue::failed(piece)) {
        lock.unlock();
        try {
          piece.read();
        } catch (...) {
          error = std::current_exception();
        }
        lock.lock();
      }
      if (auto batch = pieces_.finish(piece, std::move(error))) {
        lock.unlock();
        batch->done(std::move(batch->error));
        batch.reset();
        lock.lock();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  PieceQueue pieces_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_thread_queue(QueueTuning tuning) {
  if (tuning.depth == 0) tuning.depth = 12;
  if (tuning.piece_bytes == 0) tuning.piece_bytes = default_piece_bytes;
  return std::make_unique<ThreadQueue>(tuning);
}

}  // namespace flash_moe::io
