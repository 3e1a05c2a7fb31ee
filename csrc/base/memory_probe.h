#pragma once
// How fast the machine reads memory: the bound of decoding from RAM.

#include <cstddef>

namespace flash_moe {

// What a probe reads over and over: twice the last-level cache or more, since a cache of the same size still serves a
// fifth of the reads, but never more than a quarter of the memory that the process may still take.
size_t memory_probe_bytes();

struct MemoryProbeOptions {
  int threads = 1;
  size_t bytes = memory_probe_bytes();  // all threads together
  double seconds = 0.3;              // of reading; filling the memory comes on top
};

// Bytes a second of the best of the passes, so that a neighbour's burst does not count. ConfigError if threads < 1.
double probe_memory(const MemoryProbeOptions& options);

}  // namespace flash_moe
