#include "base/memory_probe.h"

#include <chrono>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::probe_memory;

TEST(memory_is_read_at_a_plausible_speed) {
  for (const int threads : {1, 2}) {
    const double speed = probe_memory({threads, size_t{8} << 20, 0.02});
    // From an emulator under a sanitizer to a large server.
    CHECK(speed > 1e6 && speed < 1e13);
  }
}

TEST(no_threads_is_a_config_error) {
  CHECK_THROWS(probe_memory({0, 1 << 20, 0.01}), ConfigError, "got 0");
}
