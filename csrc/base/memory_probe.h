#pragma once
// How fast the machine reads memory: the bound of decoding from RAM.

#include <cstddef>

namespace flash_moe {

struct MemoryProbeOptions {
  int threads = 1;
  size_t bytes = size_t{256} << 20;  // of memory read over and over, all threads together; well above the caches
  double seconds = 0.3;              // of reading; filling the memory comes on top
};

// Bytes a second of the best of the passes, so that a neighbour's burst does not count. ConfigError if threads < 1.
double probe_memory(const MemoryProbeOptions& options);

}  // namespace flash_moe
