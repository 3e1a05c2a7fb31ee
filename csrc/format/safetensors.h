#pragma once
// Reads safetensors headers: which tensor lies where. Never reads tensor data.
//
// File: u64 little-endian length N of the header (at most 100 MB), N bytes of JSON that begin with '{' and may end
// in spaces, then the data. Each member is a tensor {dtype, shape, data_offsets [begin, end) into the data} or
// "__metadata__", strings by string. The tensors cover the data without overlap, hole or rest. docs/FORMAT.md.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "io/file.h"

namespace flash_moe::format {

constexpr uint64_t safetensors_header_bytes_max = 100'000'000;

struct TensorInfo {
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;
  uint32_t file = 0;    // index into the checkpoint's files
  uint64_t offset = 0;  // of the first byte in that file
  uint64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<std::pair<std::string, TensorInfo>> tensors;  // in the order of their data
  std::vector<std::pair<std::string, std::string>> metadata;
};

// `begin` holds the file from its first byte to the end of its header at least. Throws FormatError.
SafetensorsHeader parse_safetensors(std::string_view begin, uint64_t file_bytes,
                                    const std::string& path);

// The same from a file: FormatError also for a Git-LFS pointer in its place.
SafetensorsHeader read_safetensors_header(const io::File& file);

// Throws FormatError when `text` (the start of `path`) is a Git-LFS pointer instead of the file.
void reject_lfs_pointer(std::string_view text, const std::string& path);

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 3]"

}  // namespace flash_moe::format
