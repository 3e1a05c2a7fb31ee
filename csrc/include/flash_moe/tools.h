#pragma once
// What stands beside the engine: packing a model, simulating caches, asking what this build can do.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "flash_moe/engine.h"
#include "flash_moe/export.h"

namespace flash_moe {

// Share of expert uses found in a cache of `capacities[i]` experts, by policy name ("belady" is the optimum), over `trace`.
// ConfigError for unknown policies and capacities below a row's ids; FormatError for logits of another number of rows.
FLASH_MOE_API std::vector<double> simulate_cache(const RouteTrace& trace, const std::string& policy,
                                                 std::span<const int64_t> capacities);
// What EngineOptions::policy and simulate_cache know.
FLASH_MOE_API std::vector<std::string> policy_names();

// Backends by name: empty when it can be used here, else why not.
FLASH_MOE_API std::map<std::string, std::string> backends();
// Names of the cpu kernels that this machine can run, the fastest last ("accelerate" is not ordered).
FLASH_MOE_API std::vector<std::string> cpu_isas();

// Bytes a second that this machine's memory gives to `threads` reading threads; about `seconds` of reading. ConfigError for
// less than one thread.
FLASH_MOE_API double measure_memory_bandwidth(int threads, double seconds = 0.3);

struct DriveOptions {
  std::string io = "auto";               // as EngineOptions
  uint64_t record_bytes = uint64_t{7} << 20;
  uint64_t bytes_max = uint64_t{512} << 20;  // read for each depth at most
  double seconds_max = 1.0;                  // for each depth, and not much longer
  bool direct = true;                        // past the page cache; else through it, from cold
};
// Bytes a second of reading records at random places of a file with depths[i] reads in flight. IoError; ConfigError if the
// file is shorter than a record.
FLASH_MOE_API std::vector<double> measure_drive_bandwidth(const std::string& path, std::span<const int> depths,
                                                          const DriveOptions& options);

struct PackOptions {
  int bits = 0;        // of the routed experts: 2, 3, 4, 5, 6 or 8; 0 copies everything as it is
  int group_size = 0;  // 0: 64
  std::map<std::string, int> module_bits;  // for modules whose name ends in the key, '*' standing for any text
  bool requantise = false;                 // also round what the source has quantised already
};
struct PackReport {
  uint64_t bytes = 0;
  int64_t files = 0;
  bool resumed = false;  // an interrupted pack was completed
};
// Writes `source` as a pack folder at `target`, going on with an unfinished one, and reads it back. `progress` counts bytes.
// ConfigError, FormatError, IoError (what is finished stays; repeat the call), CancelledError (likewise).
FLASH_MOE_API PackReport pack_model(const std::string& source, const std::string& target, const PackOptions& options,
                                    const Progress& progress = nullptr);

}  // namespace flash_moe
