#pragma once
// How much memory the process may take: what the machine has, what the control groups above the process allow, and what
// the process has already.

#include <cstdint>
#include <limits>
#include <string>

namespace flash_moe {

inline constexpr uint64_t no_memory_limit = std::numeric_limits<uint64_t>::max();

struct MemoryState {
  uint64_t machine_bytes = 0;            // RAM of the machine
  uint64_t machine_available_bytes = 0;  // what it can give without swapping (MemAvailable)
  uint64_t limit_bytes = no_memory_limit;            // the lowest limit of the process's control groups
  uint64_t limit_available_bytes = no_memory_limit;  // the least that any of them still allows; page cache counts as free
  uint64_t process_bytes = 0;            // resident in this process

  // What the process could take on top of what it has.
  uint64_t available_bytes() const {
    return machine_available_bytes < limit_available_bytes ? machine_available_bytes
                                                           : limit_available_bytes;
  }
};

// `root` is put before /proc and /sys (tests pass a folder). Never throws: what cannot be read counts as unlimited, and
// as zero where nothing bounds it.
MemoryState read_memory_state(const std::string& root = "");

// Resident bytes of this process now; 0 if the system does not tell. A few microseconds.
uint64_t process_resident_bytes(const std::string& root = "");

}  // namespace flash_moe
