#pragma once
// What this CPU and its operating system let a process use. Found once, at the first call; thread-safe.

namespace flash_moe {

struct CpuFeatures {
  bool avx2 = false;        // with FMA and F16C
  bool avxvnni = false;     // avx2 with VNNI in its own encoding
  bool avx512 = false;      // F, BW, VL, DQ
  bool avx512vnni = false;  // avx512 with VNNI and VBMI
  bool amx_int8 = false;    // avx512vnni with AMX tiles that the kernel has granted to this process
  bool neon = false;
  bool neon_dot = false;    // with SDOT and UDOT
};

const CpuFeatures& cpu_features();

}  // namespace flash_moe
