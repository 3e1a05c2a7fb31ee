#pragma once
// Where each routed expert lies on disk, and where each of its matrices lies in a slot once read.

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/matrix.h"
#include "io/file.h"

namespace flash_moe::format {

// A run of bytes of one file that belongs to one expert. Its bytes are wanted at slot + slot_offset.
// slot_offset is congruent to file_offset modulo 4096, and the 4096-aligned hull of the run does not overlap the
// hull of another extent of the same expert in the slot: so a direct read of the hull can land in place.
struct Extent {
  uint32_t file = 0;  // index into ExpertMap::files
  uint64_t file_offset = 0;
  uint64_t bytes = 0;
  uint64_t slot_offset = 0;
};

// What an expert's matrix pointers are in the slot: offsets from the slot's first byte.
struct SlotMatrix {
  Matrix form;  // pointers null; everything else as in the file
  uint64_t data_offset = 0;
  uint64_t scales_offset = 0;
  uint64_t biases_offset = 0;
};

class ExpertMap {
 public:
  virtual ~ExpertMap() = default;
  virtual const std::vector<std::shared_ptr<io::File>>& files() const = 0;
  virtual int64_t layer_count() const = 0;               // of the model; layers without experts have none
  virtual int64_t expert_count(int64_t layer) const = 0;  // 0 for a dense layer
  virtual size_t slot_bytes() const = 0;                 // the largest expert's, page-aligned hulls included
  // Extents of one expert, in file order, appended to `out` (cleared first). Bytes read in all: the sum.
  virtual void extents(int64_t layer, int64_t expert, std::vector<Extent>& out) const = 0;
  virtual ExpertMatrices matrices(int64_t layer, int64_t expert, const uint8_t* slot) const = 0;
  virtual uint64_t expert_bytes(int64_t layer) const = 0;  // of one expert, without alignment
};

// Bytes of one kind (say, gate's scales) of every expert of a layer: at `offset + expert * stride` of one file, or at
// `places[expert]` when the experts have tensors of their own.
struct ExpertPlace {
  uint32_t file = 0;
  uint64_t offset = 0;
};
struct ExpertPart {
  uint64_t bytes = 0;  // of one expert; 0: the format has no such part
  ExpertPlace first;
  uint64_t stride = 0;
  std::vector<ExpertPlace> places;
};

// Parts in the order gate data, scales, biases, up data, scales, biases, down data, scales, biases.
struct ExpertLayer {
  int64_t expert_count = 0;  // 0: a dense layer
  ExpertMatrices forms;      // pointers null
  std::array<ExpertPart, 9> parts;
};

// Extents are worked out on demand. Parts whose pages touch are read as one extent, the bytes between them included.
// Throws FormatError when a part ends past its file. Thread-safe.
std::shared_ptr<const ExpertMap> make_expert_map(std::vector<std::shared_ptr<io::File>> files,
                                                 std::vector<ExpertLayer> layers);

}  // namespace flash_moe::format
