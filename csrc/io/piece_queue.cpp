#include "io/piece_queue.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace flash_moe::io {

void Piece::read() const {
  if (direct) {
    file->read_exact_direct(destination, bytes, offset);
  } else {
    file->read_exact(destination, bytes, offset);
  }
}

PieceQueue::PieceQueue(uint64_t piece_bytes) : piece_bytes_(piece_bytes) {
  FM_CHECK(piece_bytes > 0 && piece_bytes % direct_alignment == 0);
}

void PieceQueue::cut(const ReadRequest& request, PendingBatch& batch,
                     std::deque<Piece>& list) const {
  auto* destination = static_cast<uint8_t*>(request.destination);
  const uint64_t end = request.offset + request.bytes;
  uint64_t begin = request.offset;
  do {
    // A last piece below half the size goes with the one before it.
    uint64_t next = (begin / piece_bytes_ + 1) * piece_bytes_;
    if (next >= end || end - next < piece_bytes_ / 2) next = end;
    list.push_back({request.file, begin, next - begin, destination + (begin - request.offset),
                    request.direct, &batch});
    ++batch.pieces_left;
    begin = next;
  } while (begin < end);
}

PieceQueue::Added PieceQueue::add(std::span<const ReadRequest> requests, bool urgent,
                                  ReadQueue::Done done) {
  FM_CHECK(!requests.empty());
  for (const ReadRequest& request : requests) {
    FM_CHECK(request.file != nullptr);
    FM_CHECK(!request.direct ||
             reinterpret_cast<uintptr_t>(request.destination) % direct_alignment ==
                 request.offset % direct_alignment);
  }
  auto batch = std::make_unique<PendingBatch>();
  batch->id = next_id_++;
  batch->done = std::move(done);
  batch->urgent = urgent;
  PendingBatch& kept = *batches_.emplace(batch->id, std::move(batch)).first->second;
  for (const ReadRequest& request : requests) cut(request, kept, urgent ? urgent_ : normal_);
  return {kept.id, kept.pieces_left};
}

Piece PieceQueue::take() {
  std::deque<Piece>& list = urgent_.empty() ? normal_ : urgent_;
  FM_CHECK(!list.empty());
  const Piece piece = list.front();
  list.pop_front();
  piece.batch->started = true;
  return piece;
}

std::unique_ptr<PendingBatch> PieceQueue::finish(const Piece& piece, std::exception_ptr error) {
  PendingBatch& batch = *piece.batch;
  if (error && !batch.error) batch.error = std::move(error);
  if (--batch.pieces_left > 0) return nullptr;
  auto node = batches_.extract(batch.id);
  return std::move(node.mapped());
}

void PieceQueue::promote(ReadQueue::Batch id) {
  const auto found = batches_.find(id);
  if (found == batches_.end() || found->second->urgent) return;
  PendingBatch* batch = found->second.get();
  batch->urgent = true;
  const auto others = std::stable_partition(
      normal_.begin(), normal_.end(), [batch](const Piece& piece) { return piece.batch == batch; });
  urgent_.insert(urgent_.end(), normal_.begin(), others);
  normal_.erase(normal_.begin(), others);
}

bool PieceQueue::cancel(ReadQueue::Batch id) {
  const auto found = batches_.find(id);
  if (found == batches_.end() || found->second->started) return false;
  const PendingBatch* batch = found->second.get();
  std::erase_if(batch->urgent ? urgent_ : normal_,
                [batch](const Piece& piece) { return piece.batch == batch; });
  batches_.erase(found);
  return true;
}

}  // namespace flash_moe::io
