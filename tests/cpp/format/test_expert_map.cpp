#include "format/expert_map.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "flash_moe/error.h"
#include "format/tensor_folder.h"
#include "test.h"

using flash_moe::Dtype;
using flash_moe::ExpertMatrices;
using flash_moe::FormatError;
using flash_moe::Matrix;
using flash_moe::MatrixFormat;
using namespace flash_moe::format;

namespace {

constexpr uint64_t page = 4096;

std::string numbered_bytes(size_t count, uint32_t seed) {
  std::string out(count, '\0');
  uint32_t state = seed;
  for (char& c : out) {
    state = state * 1664525u + 1013904223u;
    c = static_cast<char>(state >> 24);
  }
  return out;
}

Matrix affine(int64_t rows, int64_t cols, uint8_t bits) {
  Matrix form;
  form.format = MatrixFormat::affine;
  form.bits = bits;
  form.group = 32;
  form.scale_dtype = Dtype::bf16;
  form.rows = rows;
  form.cols = cols;
  return form;
}

// Nine tensors, each stacked over the experts, in a shuffled order with `gap` bytes between them.
struct Stacked {
  test::Folder folder;
  std::vector<std::string> contents;  // of each file
  std::vector<std::shared_ptr<flash_moe::io::File>> files;
  ExpertLayer layer;

  Stacked(int64_t experts, uint64_t first_offset, uint64_t gap, size_t file_count) {
    layer.expert_count = experts;
    layer.forms = {affine(48, 64, 4), affine(48, 64, 4), affine(64, 96, 3)};
    const Matrix* forms[] = {&layer.forms.gate, &layer.forms.up, &layer.forms.down};
    std::vector<uint64_t> ends(file_count, first_offset);
    for (const size_t part : {4u, 0u, 8u, 2u, 6u, 1u, 7u, 3u, 5u}) {
      const Matrix& form = *forms[part / 3];
      const auto bytes = static_cast<uint64_t>(part % 3 == 0 ? form.data_bytes() : form.scales_bytes());
      const size_t file = part % file_count;
      layer.parts[part] = {bytes, {static_cast<uint32_t>(file), ends[file]}, bytes, {}};
      ends[file] += bytes * static_cast<uint64_t>(experts) + gap;
    }
    for (size_t i = 0; i < file_count; ++i) {
      contents.push_back(numbered_bytes(ends[i], static_cast<uint32_t>(i + 1)));
      folder.write("f" + std::to_string(i), contents.back());
      files.push_back(std::make_shared<flash_moe::io::File>(folder.file("f" + std::to_string(i))));
    }
  }
};

// The contract of Extent, and that bytes read through it are where matrices() says.
void check_expert(const ExpertMap& map, int64_t layer, int64_t expert, const std::vector<std::string>& contents,
                  const ExpertLayer& source) {
  std::vector<Extent> extents;
  map.extents(layer, expert, extents);
  std::vector<uint8_t> slot(map.slot_bytes());
  uint64_t hull_end_before = 0;
  uint64_t read = 0;
  for (const Extent& extent : extents) {
    CHECK(extent.slot_offset % page == extent.file_offset % page);
    const uint64_t hull_begin = extent.slot_offset / page * page;
    CHECK(hull_begin >= hull_end_before);
    hull_end_before = (extent.slot_offset + extent.bytes + page - 1) / page * page;
    CHECK(hull_end_before <= map.slot_bytes());
    std::memcpy(slot.data() + extent.slot_offset, contents[extent.file].data() + extent.file_offset, extent.bytes);
    read += extent.bytes;
  }
  CHECK(read >= map.expert_bytes(layer));
  const ExpertMatrices matrices = map.matrices(layer, expert, slot.data());
  const Matrix* all[] = {&matrices.gate, &matrices.up, &matrices.down};
  for (size_t part = 0; part < 9; ++part) {
    const Matrix& matrix = *all[part / 3];
    const uint8_t* data = part % 3 == 0 ? matrix.data : part % 3 == 1 ? matrix.scales : matrix.biases;
    const ExpertPart& from = source.parts[part];
    if (from.bytes == 0) {
      CHECK(data == nullptr);
      continue;
    }
    const ExpertPlace where =
        from.places.empty()
            ? ExpertPlace{from.first.file, from.first.offset + static_cast<uint64_t>(expert) * from.stride}
            : from.places[static_cast<size_t>(expert)];
    CHECK(std::memcmp(data, contents[where.file].data() + where.offset, from.bytes) == 0);
  }
}

}  // namespace

TEST(expert_map_places_stacked_tensors_at_any_alignment) {
  for (const uint64_t first : {uint64_t{8}, uint64_t{4095}, uint64_t{4096}, uint64_t{12345}}) {
    for (const uint64_t gap : {uint64_t{0}, uint64_t{4097}, uint64_t{100000}}) {
      for (const size_t file_count : {1u, 2u}) {
        const Stacked stacked(5, first, gap, file_count);
        const auto map = make_expert_map(stacked.files, {stacked.layer, ExpertLayer{}});
        CHECK(map->layer_count() == 2 && map->expert_count(0) == 5 && map->expert_count(1) == 0);
        CHECK(map->slot_bytes() % page == 0);
        for (int64_t expert = 0; expert < 5; ++expert) check_expert(*map, 0, expert, stacked.contents, stacked.layer);
      }
    }
  }
}

TEST(expert_map_places_experts_with_tensors_of_their_own) {
  Stacked stacked(4, 64, 777, 2);
  for (ExpertPart& part : stacked.layer.parts) {
    // Each part's tensors lie in descending order.
    for (uint64_t e = 0; e < 4; ++e) part.places.push_back({part.first.file, part.first.offset + (3 - e) * part.stride});
  }
  const auto map = make_expert_map(stacked.files, {stacked.layer});
  for (int64_t expert = 0; expert < 4; ++expert) check_expert(*map, 0, expert, stacked.contents, stacked.layer);
}

TEST(expert_map_reads_touching_parts_as_one_extent) {
  Stacked stacked(3, 4096, 0, 1);
  // One record an expert, as in a pack.
  uint64_t offset = 0;
  for (ExpertPart& part : stacked.layer.parts) {
    part.first.offset = offset;
    part.stride = 16384;
    offset += (part.bytes + 63) / 64 * 64;
  }
  CHECK(offset <= 16384);
  const auto contents = std::vector<std::string>{numbered_bytes(3 * 16384, 9)};
  stacked.folder.write("f0", contents[0]);
  stacked.files[0] = std::make_shared<flash_moe::io::File>(stacked.folder.file("f0"));
  const auto map = make_expert_map(stacked.files, {stacked.layer});
  std::vector<Extent> extents;
  map->extents(0, 2, extents);
  CHECK(extents.size() == 1 && extents[0].file_offset == 2 * 16384 && extents[0].slot_offset == 0);
  for (int64_t expert = 0; expert < 3; ++expert) check_expert(*map, 0, expert, contents, stacked.layer);
}

TEST(expert_map_leaves_absent_parts_null) {
  Stacked stacked(2, 8, 0, 1);
  Matrix plain;
  plain.format = MatrixFormat::bf16;
  plain.bits = 16;
  plain.rows = 4;
  plain.cols = 4;
  stacked.layer.forms = {plain, plain, plain};
  for (size_t part = 0; part < 9; ++part) stacked.layer.parts[part].bytes = part % 3 == 0 ? 32 : 0;
  const auto map = make_expert_map(stacked.files, {stacked.layer});
  CHECK(map->expert_bytes(0) == 96);
  check_expert(*map, 0, 1, stacked.contents, stacked.layer);
}

TEST(expert_map_rejects_experts_past_their_file) {
  Stacked stacked(3, 8, 0, 1);
  stacked.layer.parts[5].first.offset = stacked.contents[0].size() - 10;
  CHECK_THROWS(make_expert_map(stacked.files, {stacked.layer}), FormatError, "expert 0 of layer 0 ends at");
  stacked.layer.parts[5].first.offset = UINT64_MAX - 5;
  CHECK_THROWS(make_expert_map(stacked.files, {stacked.layer}), FormatError, "past the file's");
}

TEST(expert_map_survives_hundreds_of_thousands_of_extents) {
  // 60 layers of 512 experts with nine parts each: the headline model.
  Stacked stacked(512, 8, 1000, 1);
  const std::vector<ExpertLayer> layers(60, stacked.layer);
  const auto map = make_expert_map(stacked.files, layers);
  std::vector<Extent> extents;
  map->extents(59, 511, extents);
  CHECK(extents.size() == 9);
}
