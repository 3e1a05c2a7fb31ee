#pragma once
// What the queues share: batches cut into pieces, urgent ones first. No threads and no lock of its own.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <span>
#include <unordered_map>

#include "io/read_queue.h"

namespace flash_moe::io {

// A few of them on their way fill a drive that wants 2 MB at a time; larger ones make an urgent read wait for hints in flight, and
// smaller ones cost more processor time.
inline constexpr uint64_t default_piece_bytes = uint64_t{512} << 10;

struct PendingBatch {
  ReadQueue::Batch id = 0;
  ReadQueue::Done done;
  size_t pieces_left = 0;
  bool urgent = false;
  bool started = false;
  std::exception_ptr error;  // the first one
};

struct Piece {
  const File* file = nullptr;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint8_t* destination = nullptr;
  bool direct = false;
  PendingBatch* batch = nullptr;

  // Reads it on the calling thread. Throws IoError.
  void read() const;
};

// Thread-compatible: the owning queue's lock guards it.
class PieceQueue {
 public:
  // Requests longer than `piece_bytes` are cut at file offsets that are multiples of it (itself one of 4096), so that
  // one expert keeps several readers busy and an urgent batch need not wait for a whole one.
  explicit PieceQueue(uint64_t piece_bytes);

  struct Added {
    ReadQueue::Batch id = 0;
    size_t pieces = 0;
  };
  Added add(std::span<const ReadRequest> requests, bool urgent, ReadQueue::Done done);
  bool empty() const { return urgent_.empty() && normal_.empty(); }
  // The next piece; the queue is not empty. The piece holds its batch until `finish`.
  Piece take();
  // Whether the rest of the piece's batch is pointless, as another piece of it failed.
  static bool failed(const Piece& piece) { return piece.batch->error != nullptr; }
  // Ends one taken piece. Returns the batch when it was the last one: its `done` is to be called without the lock.
  std::unique_ptr<PendingBatch> finish(const Piece& piece, std::exception_ptr error);
  void promote(ReadQueue::Batch id);
  bool cancel(ReadQueue::Batch id);

 private:
  void cut(const ReadRequest& request, PendingBatch& batch, std::deque<Piece>& list) const;

  const uint64_t piece_bytes_;
  ReadQueue::Batch next_id_ = 1;
  std::deque<Piece> urgent_;
  std::deque<Piece> normal_;
  std::unordered_map<ReadQueue::Batch, std::unique_ptr<PendingBatch>> batches_;
};

// 0 chooses the default of either.
struct QueueTuning {
  int depth = 0;
  uint64_t piece_bytes = 0;
};
std::unique_ptr<ReadQueue> make_thread_queue(QueueTuning tuning);
// Null where the kernel refuses io_uring or the build lacks its header. Linux only.
std::unique_ptr<ReadQueue> make_uring_queue(QueueTuning tuning);
// Apple only.
std::unique_ptr<ReadQueue> make_gcd_queue(QueueTuning tuning);  // with FLASH_MOE_GCD

}  // namespace flash_moe::io
