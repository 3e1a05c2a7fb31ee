#include "format/expert_map.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "flash_moe/error.h"

namespace flash_moe::format {
namespace {

constexpr uint64_t page = 4096;
constexpr uint64_t page_begin(uint64_t offset) { return offset / page * page; }
constexpr uint64_t page_end(uint64_t offset) { return (offset + page - 1) / page * page; }

class PlacedExperts final : public ExpertMap {
 public:
  PlacedExperts(std::vector<std::shared_ptr<io::File>> files, std::vector<ExpertLayer> layers)
      : files_(std::move(files)), layers_(std::move(layers)) {
    for (int64_t layer = 0; layer < layer_count(); ++layer) {
      for (int64_t expert = 0; expert < expert_count(layer); ++expert) {
        check_inside_files(layer, expert);
        slot_bytes_ = std::max(slot_bytes_, walk(layer, expert, nullptr, nullptr));
      }
    }
  }

  const std::vector<std::shared_ptr<io::File>>& files() const override { return files_; }
  int64_t layer_count() const override { return static_cast<int64_t>(layers_.size()); }
  int64_t expert_count(int64_t layer) const override { return at(layer).expert_count; }
  size_t slot_bytes() const override { return slot_bytes_; }

  uint64_t expert_bytes(int64_t layer) const override {
    uint64_t bytes = 0;
    for (const ExpertPart& part : at(layer).parts) bytes += part.bytes;
    return bytes;
  }

  void extents(int64_t layer, int64_t expert, std::vector<Extent>& out) const override {
    out.clear();
    walk(layer, expert, &out, nullptr);
  }

  ExpertMatrices matrices(int64_t layer, int64_t expert, const uint8_t* slot) const override {
    std::array<uint64_t, 9> offsets{};
    walk(layer, expert, nullptr, &offsets);
    ExpertMatrices out = at(layer).forms;
    size_t part = 0;
    for (Matrix* matrix : {&out.gate, &out.up, &out.down}) {
      for (const uint8_t** pointer : {&matrix->data, &matrix->scales, &matrix->biases}) {
        if (at(layer).parts[part].bytes) *pointer = slot + offsets[part];
        ++part;
      }
    }
    return out;
  }

 private:
  struct Piece {
    uint32_t file;
    uint32_t part;
    uint64_t offset;
    uint64_t bytes;
  };

  const ExpertLayer& at(int64_t layer) const {
    FM_CHECK(layer >= 0 && layer < layer_count());
    return layers_[static_cast<size_t>(layer)];
  }

  static ExpertPlace place(const ExpertPart& part, int64_t expert) {
    if (!part.places.empty()) return part.places[static_cast<size_t>(expert)];
    return {part.first.file, part.first.offset + static_cast<uint64_t>(expert) * part.stride};
  }

  void check_inside_files(int64_t layer, int64_t expert) const {
    for (const ExpertPart& part : at(layer).parts) {
      if (part.bytes == 0) continue;
      const ExpertPlace where = place(part, expert);
      FM_CHECK(where.file < files_.size());
      const io::File& file = *files_[where.file];
      if (where.offset > file.size_bytes() || part.bytes > file.size_bytes() - where.offset) {
        throw FormatError(file.path() + ": expert " + std::to_string(expert) + " of layer " +
                          std::to_string(layer) + " ends at " + std::to_string(where.offset + part.bytes) +
                          ", past the file's " + std::to_string(file.size_bytes()) +
                          " bytes (is the copy complete?)");
      }
    }
  }

  // Lays the expert's pieces out in a slot, in file order. Returns the bytes the slot needs.
  uint64_t walk(int64_t layer, int64_t expert, std::vector<Extent>* extents,
                std::array<uint64_t, 9>* offsets) const {
    const ExpertLayer& experts = at(layer);
    FM_CHECK(expert >= 0 && expert < experts.expert_count);
    std::array<Piece, 9> pieces;
    size_t count = 0;
    for (uint32_t part = 0; part < 9; ++part) {
      if (experts.parts[part].bytes == 0) continue;
      const ExpertPlace where = place(experts.parts[part], expert);
      Piece piece{where.file, part, where.offset, experts.parts[part].bytes};
      size_t i = count++;
      for (; i > 0 && (pieces[i - 1].file > piece.file ||
                       (pieces[i - 1].file == piece.file && pieces[i - 1].offset > piece.offset));
           --i) {
        pieces[i] = pieces[i - 1];
      }
      pieces[i] = piece;
    }
    uint64_t cursor = 0;
    for (size_t first = 0; first < count;) {
      const uint64_t begin = pieces[first].offset;
      uint64_t end = begin;
      size_t last = first;
      while (last < count && pieces[last].file == pieces[first].file &&
             (last == first || page_begin(pieces[last].offset) <= page_end(end))) {
        end = std::max(end, pieces[last].offset + pieces[last].bytes);
        ++last;
      }
      const uint64_t slot_offset = cursor + begin % page;
      if (extents) extents->push_back({pieces[first].file, begin, end - begin, slot_offset});
      for (size_t i = first; offsets && i < last; ++i) {
        (*offsets)[pieces[i].part] = slot_offset + (pieces[i].offset - begin);
      }
      cursor += page_end(end) - page_begin(begin);
      first = last;
    }
    return cursor;
  }

  std::vector<std::shared_ptr<io::File>> files_;
  std::vector<ExpertLayer> layers_;
  uint64_t slot_bytes_ = 0;
};

}  // namespace

std::shared_ptr<const ExpertMap> make_expert_map(std::vector<std::shared_ptr<io::File>> files,
                                                 std::vector<ExpertLayer> layers) {
  return std::make_shared<const PlacedExperts>(std::move(files), std::move(layers));
}

}  // namespace flash_moe::format
