#include "io/read_queue.h"

#include "flash_moe/error.h"
#include "io/piece_queue.h"

namespace flash_moe::io {
namespace {

constexpr int depth_max = 256;

#if defined(FLASH_MOE_GCD)
constexpr const char* known_engines = "auto, threads or gcd";
#elif defined(__linux__)
constexpr const char* known_engines = "auto, threads or uring";
#else
constexpr const char* known_engines = "auto or threads";
#endif

}  // namespace

std::unique_ptr<ReadQueue> make_read_queue(const ReadQueueOptions& options) {
  if (options.depth < 0 || options.depth > depth_max) {
    throw ConfigError("queue depth: wanted 0 (automatic) to " + std::to_string(depth_max) +
                      ", got " + std::to_string(options.depth));
  }
  QueueTuning tuning;
  tuning.depth = options.depth;
  if (options.engine == "auto" || options.engine == "threads") return make_thread_queue(tuning);
#if defined(__linux__)
  if (options.engine == "uring") {
    if (auto queue = make_uring_queue(tuning)) return queue;
    return make_thread_queue(tuning);
  }
#endif
#if defined(FLASH_MOE_GCD)
  if (options.engine == "gcd") return make_gcd_queue(tuning);
#endif
  throw ConfigError("io engine: wanted " + std::string(known_engines) + " on this system, got '" +
                    options.engine + "'");
}

}  // namespace flash_moe::io
