#pragma once
// Experts in two files whose bytes are known: three extents each, at odd offsets, as a checkpoint has them.

#include <cstdint>
#include <memory>
#include <vector>

#include "format/expert_map.h"
#include "io/temp_file.h"

namespace test {

class FakeExperts final : public flash_moe::format::ExpertMap {
 public:
  using File = flash_moe::io::File;
  using Extent = flash_moe::format::Extent;

  explicit FakeExperts(std::shared_ptr<flash_moe::io::FaultPlan> faults = nullptr) {
    // Written once for all tests.
    static const TempFile disks[] = {TempFile(file_bytes, 0), TempFile(file_bytes, 1)};
    for (const TempFile& disk : disks) {
      files_.push_back(std::make_shared<File>(disk.path(), nullptr, faults));
    }
  }

  const std::vector<std::shared_ptr<File>>& files() const override { return files_; }
  int64_t layer_count() const override { return layers; }
  int64_t expert_count(int64_t) const override { return experts; }
  size_t slot_bytes() const override { return 6 * 4096; }
  uint64_t expert_bytes(int64_t) const override { return 4000 + 300 + 300; }
  flash_moe::ExpertMatrices matrices(int64_t, int64_t, const uint8_t*) const override { return {}; }
  void extents(int64_t layer, int64_t expert, std::vector<Extent>& out) const override {
    const auto index = static_cast<uint64_t>(layer * experts + expert);
    out.clear();
    // The first may touch two pages, the others one or two.
    const Extent parts[] = {{0, 13 + index * 4000, 4000, 0}, {1, index * 300, 300, 0}, {1, small_begin + index * 300, 300, 0}};
    uint64_t page = 0;
    for (Extent part : parts) {
      part.slot_offset = page + part.file_offset % 4096;
      page = (part.slot_offset + part.bytes + 4095) / 4096 * 4096;
      out.push_back(part);
    }
  }

  // Whether a slot holds exactly this expert.
  bool right(int64_t layer, int64_t expert, const uint8_t* slot) const {
    std::vector<Extent> parts;
    extents(layer, expert, parts);
    for (const Extent& part : parts) {
      if (!holds(slot + part.slot_offset, part.file_offset, part.bytes, part.file)) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t layers = 4;
  static constexpr int64_t experts = 32;
  static constexpr uint64_t file_bytes = layers * experts * 4000 + 100;
  static constexpr uint64_t small_begin = layers * experts * 300 + 77;

  std::vector<std::shared_ptr<File>> files_;
};

}  // namespace test
