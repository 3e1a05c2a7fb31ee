// Reads on Apple systems: up to `depth` tasks of libdispatch, each reading one piece after another until none is left, so
// that no thread of ours stands idle and the system decides which core reads. The plain function API, no blocks.

#include <dispatch/dispatch.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "io/piece_queue.h"

namespace flash_moe::io {
namespace {

class GcdQueue final : public ReadQueue {
 public:
  explicit GcdQueue(QueueTuning tuning)
      : depth_(static_cast<size_t>(tuning.depth)),
        group_(dispatch_group_create()),
        queue_(dispatch_get_global_queue(QOS_CLASS_USER_INITIATED, 0)),
        pieces_(tuning.piece_bytes) {}

  ~GcdQueue() override {
    dispatch_group_wait(group_, DISPATCH_TIME_FOREVER);
    dispatch_release(group_);
  }

  std::string name() const override { return "gcd"; }
  int depth() const override { return static_cast<int>(depth_); }

  Batch submit(std::span<const ReadRequest> requests, bool urgent, Done done) override {
    PieceQueue::Added added;
    size_t starting = 0;
    {
      const std::lock_guard lock(mutex_);
      added = pieces_.add(requests, urgent, std::move(done));
      starting = std::min(added.pieces, depth_ - tasks_);
      tasks_ += starting;
    }
    for (size_t i = 0; i < starting; ++i) dispatch_group_async_f(group_, queue_, this, &work);
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
  static void work(void* self) { static_cast<GcdQueue*>(self)->read_pieces(); }

  void read_pieces() {
    std::unique_lock lock(mutex_);
    while (!pieces_.empty()) {
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
    --tasks_;
  }

  const size_t depth_;
  const dispatch_group_t group_;
  const dispatch_queue_t queue_;
  std::mutex mutex_;
  PieceQueue pieces_;
  size_t tasks_ = 0;  // given to libdispatch and not ended
};

}  // namespace

std::unique_ptr<ReadQueue> make_gcd_queue(QueueTuning tuning) {
  if (tuning.depth == 0) tuning.depth = 8;
  if (tuning.piece_bytes == 0) tuning.piece_bytes = uint64_t{1} << 20;
  return std::make_unique<GcdQueue>(tuning);
}

}  // namespace flash_moe::io
