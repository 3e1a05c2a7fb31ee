#include "io/piece_queue.h"

#include <utility>
#include <vector>

#include "io/temp_file.h"
#include "test.h"

using flash_moe::InternalError;
using flash_moe::IoError;
using flash_moe::io::File;
using flash_moe::io::Piece;
using flash_moe::io::PieceQueue;
using flash_moe::io::ReadRequest;

namespace {

struct Fixture {
  test::TempFile temp{100000};
  File file{temp.path()};
  test::Pages memory{128 * 1024};
  PieceQueue queue{8192};

  ReadRequest request(uint64_t offset, uint64_t bytes) const {
    return {&file, offset, bytes, memory.data() + offset, true};
  }
  PieceQueue::Added add(uint64_t offset, uint64_t bytes, bool urgent) {
    const ReadRequest one = request(offset, bytes);
    return queue.add({&one, 1}, urgent, [](std::exception_ptr) {});
  }
};

}  // namespace

TEST(pieces_cover_a_request_once_and_start_at_pages) {
  Fixture fixture;
  for (const uint64_t offset : {0u, 5u, 4096u, 8191u, 8192u}) {
    for (const uint64_t bytes : {0u, 1u, 8192u, 12287u, 12289u, 50000u}) {
      const size_t count = fixture.add(offset, bytes, false).pieces;
      uint64_t next = offset;
      for (size_t i = 0; i < count; ++i) {
        const Piece piece = fixture.queue.take();
        CHECK(piece.offset == next);
        CHECK(piece.destination == fixture.memory.data() + piece.offset);
        CHECK(i == 0 || piece.offset % 8192 == 0);
        CHECK(piece.bytes <= 8192 + 4096);
        next += piece.bytes;
        CHECK((fixture.queue.finish(piece, nullptr) != nullptr) == (i + 1 == count));
      }
      CHECK(next == offset + bytes);
      CHECK(fixture.queue.empty());
    }
  }
}

TEST(urgent_pieces_come_first_and_each_kind_in_order) {
  Fixture fixture;
  fixture.add(0, 16384, false);
  fixture.add(32768, 16384, true);
  std::vector<uint64_t> offsets;
  while (!fixture.queue.empty()) {
    const Piece piece = fixture.queue.take();
    offsets.push_back(piece.offset);
    fixture.queue.finish(piece, nullptr);
  }
  CHECK((offsets == std::vector<uint64_t>{32768, 40960, 0, 8192}));
}

TEST(a_promoted_batch_overtakes_normal_ones) {
  Fixture fixture;
  fixture.add(0, 8192, false);
  const auto late = fixture.add(16384, 16384, false);
  fixture.queue.promote(late.id);
  fixture.queue.promote(late.id);
  fixture.queue.promote(999);
  std::vector<uint64_t> offsets;
  while (!fixture.queue.empty()) {
    const Piece piece = fixture.queue.take();
    offsets.push_back(piece.offset);
    fixture.queue.finish(piece, nullptr);
  }
  CHECK((offsets == std::vector<uint64_t>{16384, 24576, 0}));
}

TEST(only_what_has_not_started_can_be_cancelled) {
  Fixture fixture;
  const auto first = fixture.add(0, 16384, false);
  const auto second = fixture.add(16384, 16384, false);
  const Piece started = fixture.queue.take();
  CHECK(!fixture.queue.cancel(first.id));
  CHECK(fixture.queue.cancel(second.id));
  CHECK(!fixture.queue.cancel(second.id));
  const Piece rest = fixture.queue.take();
  CHECK(fixture.queue.empty());
  CHECK(!fixture.queue.finish(started, nullptr));
  CHECK(fixture.queue.finish(rest, nullptr) != nullptr);
  CHECK(!fixture.queue.cancel(first.id));
}

TEST(a_batch_keeps_its_first_error) {
  Fixture fixture;
  fixture.add(0, 16384, true);
  const Piece first = fixture.queue.take();
  const Piece second = fixture.queue.take();
  CHECK(!PieceQueue::failed(second));
  fixture.queue.finish(first, std::make_exception_ptr(IoError("first")));
  CHECK(PieceQueue::failed(second));
  const auto batch = fixture.queue.finish(second, std::make_exception_ptr(IoError("second")));
  CHECK_THROWS(std::rethrow_exception(batch->error), IoError, "first");
}

TEST(misuse_is_our_defect) {
  Fixture fixture;
  CHECK_THROWS(fixture.queue.add({}, true, nullptr), InternalError, "requests");
  ReadRequest crooked = fixture.request(0, 10);
  crooked.offset = 1;
  CHECK_THROWS(fixture.queue.add({&crooked, 1}, true, nullptr), InternalError, "direct");
}
