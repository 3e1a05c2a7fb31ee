#pragma once
// What stands beside the engine: packing a model, simulating caches, measuring the machine.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flash_moe/engine.h"
#include "flash_moe/export.h"

namespace flash_moe {

// Share of expert uses found in a cache of `capacities[i]` experts, by policy name ("belady" for the optimum) over `trace`:
// rows of layer, then the ids that one token (or chunk) asked for. ConfigError for unknown policies.
FLASH_MOE_API std::vector<double> simulate_cache(const std::vector<std::vector<int32_t>>& trace,
                                                 const std::string& policy, std::span<const int64_t> capacities);
FLASH_MOE_API std::vector<std::string> cache_policies();

// One bandwidth measured.
struct BandwidthSample {
  int depth = 1;         // reads in flight, or threads
  bool direct = false;   // past the page cache
  double bytes_per_second = 0;
};

// Random reads of `record_bytes` from `path` at each depth, direct and buffered (from a dropped cache), each bounded by
// `seconds`. Throws IoError.
FLASH_MOE_API std::vector<BandwidthSample> measure_drive(const std::string& path, uint64_t record_bytes,
                                                         std::span<const int> depths, double seconds);
// Sequential reads of memory far larger than the caches, with 1 thread and with `thread_count` (0: all cores).
FLASH_MOE_API std::vector<BandwidthSample> measure_memory(int thread_count, double seconds);

// What this machine and this build can do.
struct MachineInfo {
  int cores = 1;
  std::vector<std::string> isas;  // cpu kernels, slowest first
  std::string metal_reason;       // why there is no Metal; empty when there is
  std::string cuda_reason;
  uint64_t memory_bytes = 0;
  uint64_t memory_available_bytes = 0;  // control group limits respected
  uint64_t process_bytes = 0;           // resident in this process
  std::vector<std::string> io_engines;
};
FLASH_MOE_API MachineInfo machine_info();

struct PackOptions {
  int bits = 0;   // 0: copy as it is; 2, 3, 4, 6 or 8: quantise 16-bit sources to affine
  int group = 64;
  bool allow_requantise = false;  // quantise what is already quantised
};
// Writes `source` as a pack folder at `destination`, resuming an unfinished one. `progress` counts bytes.
FLASH_MOE_API void pack_model(const std::string& source, const std::string& destination, const PackOptions& options,
                              const Progress& progress = nullptr);

}  // namespace flash_moe
