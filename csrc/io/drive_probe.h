#pragma once
// How fast a drive delivers records of a given size from a given file, by number of reads in flight. For `plan`, `bench`
// and the choice between own slots and the page cache.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"

namespace flash_moe::io {

struct DriveProbeOptions {
  std::string engine = "auto";                 // as ReadQueueOptions
  uint64_t record_bytes = uint64_t{7} << 20;  // rounded up to 4096
  uint64_t bytes_max = uint64_t{512} << 20;  // read at most so much for each depth
  double seconds_max = 1.0;                     // and not much longer than this, but one record at least
  bool direct = true;                           // buffered reads first drop what they will read from the page cache
  uint64_t seed = 1;                            // of the places that are read
};

struct DriveSpeed {
  int depth = 0;
  uint64_t bytes = 0;
  double seconds = 0;
  double bytes_per_second() const { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }
};

// Reads records at random places, one queue for each depth. Throws IoError; ConfigError if the file is shorter than a
// record or a depth is no depth. Takes the memory of the deepest queue: depth records.
std::vector<DriveSpeed> probe_drive(const File& file, std::span<const int> depths,
                                    const DriveProbeOptions& options);

}  // namespace flash_moe::io
