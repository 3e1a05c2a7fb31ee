#include "base/memory_probe.h"

#include <algorithm>

#include "base/cgroup.h"
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
  const uint64_t available = flash_moe::read_memory_state().available_bytes();
  CHECK(memory_probe_bytes() >= std::min<uint64_t>(size_t{256} << 20, available / 8));
  CHECK(memory_probe_bytes() <= available / 2);  // what is available changes from one question to the next
}

TEST(no_threads_is_a_config_error) {
  CHECK_THROWS(probe_memory({0, 1 << 20, 0.01}), ConfigError, "got 0");
}
