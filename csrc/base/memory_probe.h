#pragma once
// How fast the machine reads memory: the bound of decoding from RAM.

#include <cstddef>
#include <cstdint>

namespace flash_moe {

// What a probe reads over and over beside a largest cache of that size: twice as much and at least 256 MB, since a cache of
// the same size still serves a fifth of the reads, but no more than a quarter of the available memory. 0: not known.
size_t memory_probe_bytes(uint64_t cache_bytes, uint64_t available_bytes);

struct MemoryProbeOptions {
  int threads = 1;
  size_t bytes = 0;  // of memory, all threads together; 0: memory_probe_bytes of this machine
  double seconds = 0.3;              // of reading; filling the memory comes on top
};

// Bytes a second of the best of the passes, so that a neighbour's burst does not count. ConfigError if threads < 1.
double probe_memory(const MemoryProbeOptions& options);

}  // namespace flash_moe
