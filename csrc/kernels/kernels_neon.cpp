#include "kernels/lanes_neon.h"
#include "kernels/tables.h"
#include "kernels/table.h"

namespace flash_moe::kernels {

constinit const Kernels kNeonFloat32 = float32_table("neon");

}  // namespace flash_moe::kernels
