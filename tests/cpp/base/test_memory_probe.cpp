#include "base/memory_probe.h"

#include <cstdint>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::memory_probe_bytes;
using flash_moe::probe_memory;

TEST(memory_is_read_at_a_plausible_speed) {
  for (const int threads : {1, 2}) {
    const double speed = probe_memory({threads, size_t{8} << 20, 0.02});
    // From an emulator under a sanitizer to a large server.
    CHECK(speed > 1e6 && speed < 1e13);
  }
}

TEST(a_probe_reads_more_than_the_caches_hold_and_less_than_the_memory_has) {
  constexpr uint64_t mib = 1 << 20;
  CHECK(memory_probe_bytes(260 * mib, 16'000 * mib) == 520 * mib);
  CHECK(memory_probe_bytes(8 * mib, 16'000 * mib) == 256 * mib);
  CHECK(memory_probe_bytes(260 * mib, 1'200 * mib) == 300 * mib);
  CHECK(memory_probe_bytes(0, 0) == 256 * mib);  // what the system does not tell
}

TEST(no_threads_is_a_config_error) {
  CHECK_THROWS(probe_memory({0, 1 << 20, 0.01}), ConfigError, "got 0");
}
