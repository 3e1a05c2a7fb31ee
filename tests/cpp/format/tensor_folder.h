#pragma once
// A scratch folder, removed with the object, and a writer of tiny safetensors files for tests.

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"

namespace test {

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "flash_moe_XXXXXX").string();
    path_ = mkdtemp(pattern.data()) ? pattern : "";
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
  }
  std::string read(const std::string& name) const {
    std::ifstream stream(file(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  }
  bool has(const std::string& name) const { return std::filesystem::exists(file(name)); }

 private:
  std::string path_;
};

struct Tensor {
  std::string name;
  flash_moe::Dtype dtype;
  std::vector<int64_t> shape;
  std::string data;
};

inline int64_t product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t dimension : shape) n *= dimension;
  return n;
}

// F32 from values, in the dtype asked for (F32 or BF16, which must hold them exactly).
inline Tensor floats(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values,
                     flash_moe::Dtype dtype = flash_moe::Dtype::f32) {
  std::string data;
  for (const float value : values) {
    char raw[4];
    if (dtype == flash_moe::Dtype::f32) {
      std::memcpy(raw, &value, 4);
      data.append(raw, 4);
    } else {
      const uint16_t half = flash_moe::f32_to_bf16(value);
      std::memcpy(raw, &half, 2);
      data.append(raw, 2);
    }
  }
  return {name, dtype, shape, data};
}

// Bytes that differ from tensor to tensor and from place to place.
inline Tensor pattern(const std::string& name, flash_moe::Dtype dtype, const std::vector<int64_t>& shape) {
  const size_t bytes = static_cast<size_t>(product(shape)) * flash_moe::dtype_bytes(dtype);
  uint32_t state = 2166136261u;
  for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 16777619u;
  std::string data(bytes, '\0');
  for (char& c : data) {
    state = state * 1664525u + 1013904223u;
    c = static_cast<char>((state >> 24) & 0x3fu);  // no NaN in any float format
  }
  return {name, dtype, shape, data};
}

inline std::string safetensors_bytes(const std::vector<Tensor>& tensors, const std::string& metadata = "") {
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + metadata + (tensors.empty() ? "" : ",");
  std::string data;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    std::string shape;
    for (const int64_t d : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(d);
    header += std::string(i ? "," : "") + "\"" + tensor.name + "\":{\"dtype\":\"" + flash_moe::dtype_name(tensor.dtype) +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + tensor.data.size()) + "]}";
    data += tensor.data;
  }
  header += "}";
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return length + header + data;
}

}  // namespace test
