#pragma once
// A file of known bytes that goes away with the test, page-aligned memory, and faults made to measure.

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "io/fault_plan.h"

namespace test {

// The byte at `offset` of every test file; differs between neighbouring pages and bytes.
inline uint8_t byte_at(uint64_t offset, uint64_t seed = 0) {
  uint64_t x = offset + seed * 0x9e3779b97f4a7c15ull + 0x632be59bd9b4e019ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<uint8_t>(x >> 56);
}

class TempFile {
 public:
  explicit TempFile(uint64_t bytes, uint64_t seed = 0) {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder ? folder : "/tmp") + "/flash_moe_test_XXXXXX";
    const int fd = ::mkstemp(path_.data());
    std::vector<uint8_t> content(bytes);
    for (uint64_t i = 0; i < bytes; ++i) content[i] = byte_at(i, seed);
    std::FILE* file = ::fdopen(fd, "wb");
    if (std::fwrite(content.data(), 1, content.size(), file) != content.size()) std::perror("fwrite");
    std::fclose(file);
  }
  ~TempFile() { std::filesystem::remove(path_); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Page-aligned memory filled with a byte that shows what was not written.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_((bytes + 4095) / 4096 * 4096) {
    data_ = static_cast<uint8_t*>(std::aligned_alloc(4096, bytes_));
    std::fill_n(data_, bytes_, uint8_t{0xee});
  }
  ~Pages() { std::free(data_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  uint8_t* data_;
};

inline bool holds(const uint8_t* memory, uint64_t offset, uint64_t bytes, uint64_t seed = 0) {
  for (uint64_t i = 0; i < bytes; ++i) {
    if (memory[i] != byte_at(offset + i, seed)) return false;
  }
  return true;
}

// Each attempt is answered by a function of its number, counted from 1.
class ScriptedFaults final : public flash_moe::io::FaultPlan {
 public:
  using Script = Attempt (*)(uint64_t number);
  explicit ScriptedFaults(Script script) : script_(script) {}
  Attempt next_attempt() override { return script_(attempts_.fetch_add(1) + 1); }
  uint64_t attempts() const { return attempts_.load(); }

 private:
  Script script_;
  std::atomic<uint64_t> attempts_{0};
};

}  // namespace test
