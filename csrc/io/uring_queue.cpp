// Reads through one io_uring: a single thread keeps `depth` reads in flight. Raw system calls, so that nothing has to
// be installed.
//
// DESIGN. The ring belongs to its thread alone; submit() only adds pieces under the mutex and wakes the thread by an
// eventfd whose read is itself an entry of the ring. A short read goes on from where it ended, EINTR and EAGAIN are
// submitted again, a refused direct read becomes a buffered one. What cannot happen: an entry in the ring whose
// memory is not in `operations_`; a batch that is done while one of its reads is in the kernel.

#include "io/piece_queue.h"

#if __has_include(<linux/io_uring.h>)

#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"

namespace flash_moe::io {
namespace {

constexpr uint64_t read_bytes_max = uint64_t{1} << 30;  // an entry's length is 32 bits
constexpr uint64_t wake_id = UINT64_MAX;

class Mapping {
 public:
  Mapping() = default;
  Mapping(int fd, uint64_t offset, size_t bytes) : bytes_(bytes) {
    address_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                      static_cast<off_t>(offset));
  }
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, MAP_FAILED)), bytes_(other.bytes_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (valid()) ::munmap(address_, bytes_);
  }
  bool valid() const { return address_ != MAP_FAILED; }
  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(address_) + offset);
  }

 private:
  void* address_ = MAP_FAILED;
  size_t bytes_ = 0;
};

// The two rings that are shared with the kernel. Not thread-safe.
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (fd_ >= 0) ::close(fd_);
  }

  // False where the kernel refuses or is older than 5.6, which brought IORING_OP_READ.
  bool open(unsigned entries) {
    io_uring_params params{};
    fd_ = static_cast<int>(::syscall(__NR_io_uring_setup, entries, &params));
    if (fd_ < 0) return false;
    constexpr unsigned needed =
        IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;
    if ((params.features & needed) != needed) return false;
    const size_t bytes =
        std::max<size_t>(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                         params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    rings_ = Mapping(fd_, IORING_OFF_SQ_RING, bytes);
    entries_ = Mapping(fd_, IORING_OFF_SQES, params.sq_entries * sizeof(io_uring_sqe));
    if (!rings_.valid() || !entries_.valid()) return false;
    sq_ = params.sq_off;
    cq_ = params.cq_off;
    sq_mask_ = *rings_.at<unsigned>(sq_.ring_mask);
    cq_mask_ = *rings_.at<unsigned>(cq_.ring_mask);
    return true;
  }

  // Never more entries than it was opened with between two calls of enter.
  void push(const io_uring_sqe& entry) {
    unsigned* tail = rings_.at<unsigned>(sq_.tail);
    const unsigned index = *tail & sq_mask_;
    entries_.at<io_uring_sqe>(0)[index] = entry;
    rings_.at<unsigned>(sq_.array)[index] = index;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
  }

  // Submits what was pushed and waits for at least one completion.
  void enter() {
    const unsigned head = __atomic_load_n(rings_.at<unsigned>(sq_.head), __ATOMIC_ACQUIRE);
    const unsigned pushed = *rings_.at<unsigned>(sq_.tail) - head;
    const long rc = ::syscall(__NR_io_uring_enter, fd_, pushed, 1, IORING_ENTER_GETEVENTS, nullptr, 0);
    // What the kernel did not take stays in the ring for the next call. Errors other than EINTR mean that it is out
    // of memory for now.
    if (rc < 0 && errno != EINTR) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  bool pop(io_uring_cqe& out) {
    unsigned* head = rings_.at<unsigned>(cq_.head);
    if (*head == __atomic_load_n(rings_.at<unsigned>(cq_.tail), __ATOMIC_ACQUIRE)) return false;
    out = rings_.at<io_uring_cqe>(cq_.cqes)[*head & cq_mask_];
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return true;
  }

 private:
  int fd_ = -1;
  Mapping rings_;
  Mapping entries_;
  io_sqring_offsets sq_{};
  io_cqring_offsets cq_{};
  unsigned sq_mask_ = 0;
  unsigned cq_mask_ = 0;
};

// One piece on its way: [cursor, end) of the file is still to be read, as far as the piece needs it.
struct Operation {
  Piece piece;
  uint64_t cursor = 0;
  uint64_t end = 0;
  bool direct = false;
  bool to_worker = false;  // the kernel would block: let one of its workers do it
  FaultPlan::Attempt fault;

  void start(const Piece& taken) {
    *this = {};
    piece = taken;
    if (piece.direct && piece.file->descriptor(true) >= 0) {
      const Hull hull = direct_hull(piece.offset, piece.bytes);
      direct = true;
      cursor = hull.offset;
      end = hull.offset + hull.bytes;
    } else {
      go_on_buffered();
    }
  }
  void go_on_buffered() {
    direct = false;
    // Copies from the page cache would otherwise run one after another on the queue's thread.
    to_worker = true;
    cursor = std::max(cursor, piece.offset);
    end = piece.offset + piece.bytes;
  }
  bool complete() const { return cursor >= piece.offset + piece.bytes; }
  std::exception_ptr error(int number) const {
    const uint64_t got = std::max(cursor, piece.offset) - piece.offset;
    return std::make_exception_ptr(
        piece.file->read_error(piece.offset, piece.bytes, got, number));
  }
};

class UringQueue final : public ReadQueue {
 public:
  explicit UringQueue(QueueTuning tuning)
      : depth_(tuning.depth),
        pieces_(tuning.piece_bytes),
        operations_(static_cast<size_t>(tuning.depth)) {}

  bool open() {
    wake_fd_ = ::eventfd(0, EFD_CLOEXEC);
    if (wake_fd_ < 0 || !ring_.open(std::bit_ceil(static_cast<unsigned>(depth_) + 1))) return false;
    for (size_t i = operations_.size(); i > 0; --i) idle_.push_back(i - 1);
    thread_ = std::thread([this] { run(); });
    return true;
  }

  ~UringQueue() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    if (thread_.joinable()) {
      wake();
      thread_.join();
    }
    if (wake_fd_ >= 0) ::close(wake_fd_);
  }

  std::string name() const override { return "uring"; }
  int depth() const override { return depth_; }

  Batch submit(std::span<const ReadRequest> requests, bool urgent, Done done) override {
    PieceQueue::Added added;
    bool asleep = false;
    {
      const std::lock_guard lock(mutex_);
      added = pieces_.add(requests, urgent, std::move(done));
      asleep = std::exchange(wants_wake_, false);
    }
    if (asleep) wake();
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
  void wake() const {
    const uint64_t one = 1;
    // Only fails when the counter is full, and then the thread is awake.
    const ssize_t written = ::write(wake_fd_, &one, sizeof one);
    static_cast<void>(written);
  }

  void run() {
    push_wake_read();
    for (;;) {
      if (!take_pieces()) break;
      ring_.enter();
      io_uring_cqe completion{};
      while (ring_.pop(completion)) {
        if (completion.user_data == wake_id) {
          push_wake_read();
        } else {
          completed(completion.user_data, completion.res);
        }
      }
    }
  }

  // Fills the ring. False when the queue is to end and nothing is left to do.
  bool take_pieces() {
    for (;;) {
      Piece piece;
      bool skip = false;
      {
        const std::lock_guard lock(mutex_);
        wants_wake_ = false;
        if (pieces_.empty()) {
          if (stopping_ && idle_.size() == operations_.size()) return false;
          wants_wake_ = true;
          return true;
        }
        if (idle_.empty()) return true;
        piece = pieces_.take();
        skip = PieceQueue::failed(piece) || piece.bytes == 0;
      }
      if (skip) {
        finish(piece, nullptr);
        continue;
      }
      const size_t index = idle_.back();
      idle_.pop_back();
      operations_[index].start(piece);
      advance(index);
    }
  }

  void push_wake_read() {
    io_uring_sqe entry{};
    entry.opcode = IORING_OP_READ;
    entry.fd = wake_fd_;
    entry.addr = reinterpret_cast<uint64_t>(&wake_value_);
    entry.len = sizeof wake_value_;
    entry.user_data = wake_id;
    ring_.push(entry);
  }

  // Puts what is left of an operation into the ring.
  void advance(size_t index) {
    Operation& operation = operations_[index];
    const File& file = *operation.piece.file;
    operation.fault = {};
    while (FaultPlan* faults = file.faults()) {
      operation.fault = faults->next_attempt();
      if (operation.fault.error == 0) break;
      if (operation.fault.error != EINTR) return failed(index, operation.fault.error);
    }
    // Another read of the file may have been refused since this one started.
    if (operation.direct && !file.direct_supported()) operation.go_on_buffered();
    const uint64_t left = std::min(operation.end - operation.cursor, read_bytes_max);
    io_uring_sqe entry{};
    entry.opcode = IORING_OP_READ;
    entry.flags = operation.to_worker ? IOSQE_ASYNC : 0;
    entry.fd = file.descriptor(operation.direct);
    entry.off = operation.cursor;
    entry.addr = reinterpret_cast<uint64_t>(operation.piece.destination) +
                 (operation.cursor - operation.piece.offset);
    entry.len = static_cast<uint32_t>(operation.fault.bytes_to_ask(left, operation.direct));
    entry.user_data = index;
    ring_.push(entry);
  }

  void completed(size_t index, int result) {
    Operation& operation = operations_[index];
    if (result == -EINTR || result == -EAGAIN) {
      operation.to_worker = operation.to_worker || result == -EAGAIN;
      return advance(index);
    }
    if (result == -EINVAL && operation.direct) {
      operation.piece.file->refuse_direct();
      operation.go_on_buffered();
      return advance(index);
    }
    if (result < 0) return failed(index, -result);
    if (result == 0) return failed(index, 0);
    operation.cursor += std::min<uint64_t>(static_cast<uint64_t>(result), operation.fault.bytes_max);
    if (operation.complete()) {
      idle_.push_back(index);
      return finish(operation.piece, nullptr);
    }
    if (operation.direct && operation.cursor % direct_alignment != 0) operation.go_on_buffered();
    advance(index);
  }

  void failed(size_t index, int number) {
    idle_.push_back(index);
    finish(operations_[index].piece, operations_[index].error(number));
  }

  void finish(const Piece& piece, std::exception_ptr error) {
    std::unique_ptr<PendingBatch> batch;
    {
      const std::lock_guard lock(mutex_);
      batch = pieces_.finish(piece, std::move(error));
    }
    if (batch) batch->done(std::move(batch->error));
  }

  const int depth_;
  std::mutex mutex_;  // pieces_, stopping_, wants_wake_
  PieceQueue pieces_;
  bool stopping_ = false;
  bool wants_wake_ = false;

  // The thread's own.
  Ring ring_;
  std::vector<Operation> operations_;
  std::vector<size_t> idle_;
  int wake_fd_ = -1;
  uint64_t wake_value_ = 0;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_uring_queue(QueueTuning tuning) {
  if (tuning.depth == 0) tuning.depth = 8;
  if (tuning.piece_bytes == 0) tuning.piece_bytes = default_piece_bytes;
  auto queue = std::make_unique<UringQueue>(tuning);
  if (!queue->open()) return nullptr;
  return queue;
}

}  // namespace flash_moe::io

#else

namespace flash_moe::io {

std::unique_ptr<ReadQueue> make_uring_queue(QueueTuning) { return nullptr; }

}  // namespace flash_moe::io

#endif
