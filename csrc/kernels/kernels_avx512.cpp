#include "kernels/lanes_avx512.h"
#include "kernels/tables.h"
#include "kernels/table.h"

namespace flash_moe::kernels {

constinit const Kernels kAvx512Float32 = float32_table("avx512");

}  // namespace flash_moe::kernels
