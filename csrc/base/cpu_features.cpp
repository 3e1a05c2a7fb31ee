#include "base/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace flash_moe {
namespace {

#if defined(__x86_64__)

constexpr uint32_t bit(int n) { return 1u << n; }
constexpr bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

// Which register sets the operating system saves.
uint64_t saved_state() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux hands out the 8 KiB of tile state on request only; all threads of the process then have it.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures found;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool os_saves = has(c, bit(27));
  const bool fma_and_f16c = has(c, bit(12) | bit(29) | bit(28));
  if (!os_saves || !fma_and_f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint64_t state = saved_state();
  found.avx2 = (state & 0x6) == 0x6 && has(b, bit(5));
  found.avx512 = found.avx2 && (state & 0xe6) == 0xe6 && has(b, bit(16) | bit(17) | bit(30) | bit(31));
  found.avx512vnni = found.avx512 && has(c, bit(11) | bit(1));
  found.amx_int8 =
      found.avx512vnni && (state & 0x60000) == 0x60000 && has(d, bit(24) | bit(25)) && request_tiles();
  found.avxvnni = found.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, bit(4));
  return found;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  CpuFeatures found;
  found.neon = true;
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  found.neon_dot = (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t bytes = sizeof value;
  found.neon_dot = sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &bytes, nullptr, 0) == 0 && value != 0;
#endif
  return found;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

}  // namespace flash_moe
