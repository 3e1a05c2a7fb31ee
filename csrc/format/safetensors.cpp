#include "format/safetensors.h"

#include <algorithm>
#include <optional>

#include "flash_moe/error.h"
#include "format/json.h"

namespace flash_moe::format {
namespace {

constexpr size_t length_bytes = 8;
constexpr std::string_view lfs_signature = "version https://git-lfs.github.com/spec";

std::optional<Dtype> dtype_named(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(Dtype::u64); ++i) {
    if (name == dtype_name(static_cast<Dtype>(i))) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

uint64_t little_endian_u64(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < length_bytes; ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  }
  return value;
}

// Validates the length field; `prefix` has 8 bytes at least.
uint64_t header_length(std::string_view prefix, uint64_t file_bytes, const std::string& path) {
  const uint64_t length = little_endian_u64(prefix);
  if (length > safetensors_header_bytes_max) {
    throw FormatError(path + ": header length is " + std::to_string(length) + " bytes, more than the " +
                      std::to_string(safetensors_header_bytes_max) +
                      " that safetensors allows (is this a safetensors file?)");
  }
  if (length > file_bytes - length_bytes) {
    throw FormatError(path + ": header of " + std::to_string(length) + " bytes ends past the file of " +
                      std::to_string(file_bytes) + " bytes (is the download complete?)");
  }
  return length;
}

void need_prefix(uint64_t file_bytes, const std::string& path) {
  if (file_bytes < length_bytes) {
    throw FormatError(path + ": the file has " + std::to_string(file_bytes) +
                      " bytes, too few for a safetensors header (is the download complete?)");
  }
}

TensorInfo parse_tensor(const std::string& name, const Json& value, const std::string& path) {
  const JsonFields fields(value, path, name);
  TensorInfo info;
  const std::string& dtype = fields.string("dtype");
  const auto known = dtype_named(dtype);
  if (!known) {
    fields.fail("dtype", "is \"" + dtype + "\", which is not known (known: F64 F32 F16 BF16 F8_E4M3 " +
                             "F8_E5M2 I64 I32 I16 I8 U64 U32 U16 U8 BOOL)");
  }
  info.dtype = *known;
  int64_t bytes = static_cast<int64_t>(dtype_bytes(info.dtype));
  bool fits = true;
  for (const Json& item : fields.array("shape")) {
    if (!item.integer() || *item.integer() < 0) {
      fields.fail("shape", std::string("holds ") + item.type_name() + " where a dimension >= 0 belongs");
    }
    info.shape.push_back(*item.integer());
    fits = fits && !__builtin_mul_overflow(bytes, info.shape.back(), &bytes);
  }
  const Json::Array& offsets = fields.array("data_offsets");
  if (offsets.size() != 2 || !offsets[0].integer() || !offsets[1].integer() ||
      *offsets[0].integer() < 0 || *offsets[1].integer() < *offsets[0].integer()) {
    fields.fail("data_offsets", "must be [begin, end] with 0 <= begin <= end");
  }
  info.offset = static_cast<uint64_t>(*offsets[0].integer());
  info.bytes = static_cast<uint64_t>(*offsets[1].integer()) - info.offset;
  if (!fits || info.bytes != static_cast<uint64_t>(bytes)) {
    fields.fail("data_offsets", "span " + std::to_string(info.bytes) + " bytes, but shape " +
                                    shape_text(info.shape) + " of " + dtype + " has " +
                                    (fits ? std::to_string(bytes) : "more than 2^63"));
  }
  return info;
}

// Sorts by data offset and holds the tensors against the data: no overlap, no hole, no rest, no lack.
void check_coverage(SafetensorsHeader& header, uint64_t data_bytes, const std::string& path) {
  auto& tensors = header.tensors;
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return a.second.offset != b.second.offset ? a.second.offset < b.second.offset
                                              : a.second.bytes < b.second.bytes;
  });
  uint64_t end = 0;
  const std::string* before = nullptr;
  for (const auto& [name, info] : tensors) {
    if (info.offset < end) {
      throw FormatError(path + ": " + name + " begins at data offset " + std::to_string(info.offset) +
                        ", inside " + *before + ", which ends at " + std::to_string(end));
    }
    if (info.offset > end) {
      throw FormatError(path + ": no tensor covers data offsets " + std::to_string(end) + " to " +
                        std::to_string(info.offset) + ", before " + name);
    }
    end = info.offset + info.bytes;
    before = &name;
    if (end > data_bytes) {
      throw FormatError(path + ": " + name + " ends at data offset " + std::to_string(end) +
                        ", past the " + std::to_string(data_bytes) +
                        " bytes of data in the file (truncated; is the download complete?)");
    }
  }
  if (end != data_bytes) {
    throw FormatError(path + ": the tensors end at data offset " + std::to_string(end) + ", but the file has " +
                      std::to_string(data_bytes) + " bytes of data");
  }
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void reject_lfs_pointer(std::string_view text, const std::string& path) {
  if (text.substr(0, lfs_signature.size()) == lfs_signature) {
    throw FormatError(path + ": this is a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder, "
                             "or download the model again");
  }
}

SafetensorsHeader parse_safetensors(std::string_view begin, uint64_t file_bytes,
                                    const std::string& path) {
  reject_lfs_pointer(begin, path);
  need_prefix(std::min<uint64_t>(file_bytes, begin.size()), path);
  const uint64_t length = header_length(begin, file_bytes, path);
  if (length > begin.size() - length_bytes) {
    throw FormatError(path + ": the header is cut short (is the download complete?)");
  }
  const std::string_view text = begin.substr(length_bytes, length);
  if (text.empty() || text[0] != '{') {
    throw FormatError(path + ": the header does not begin with '{' (is this a safetensors file?)");
  }
  const Json json = parse_json(text, path + " header");
  SafetensorsHeader header;
  header.tensors.reserve(json.object()->size());
  for (const auto& [name, value] : *json.object()) {
    if (name != "__metadata__") {
      header.tensors.emplace_back(name, parse_tensor(name, value, path));
      continue;
    }
    const JsonFields fields(value, path, name);
    for (const auto& [key, item] : *value.object()) {
      if (!item.string()) fields.fail(key, std::string("must be a string, got ") + item.type_name());
      header.metadata.emplace_back(key, *item.string());
    }
  }
  const uint64_t data_begin = length_bytes + length;
  check_coverage(header, file_bytes - data_begin, path);
  for (auto& entry : header.tensors) entry.second.offset += data_begin;
  return header;
}

SafetensorsHeader read_safetensors_header(const io::File& file) {
  const uint64_t file_bytes = file.size_bytes();
  std::string begin(std::min<uint64_t>(file_bytes, lfs_signature.size()), '\0');
  file.read_exact(begin.data(), begin.size(), 0);
  reject_lfs_pointer(begin, file.path());
  need_prefix(file_bytes, file.path());
  begin.resize(length_bytes + header_length(begin, file_bytes, file.path()));
  file.read_exact(begin.data(), begin.size(), 0);
  return parse_safetensors(begin, file_bytes, file.path());
}

}  // namespace flash_moe::format
