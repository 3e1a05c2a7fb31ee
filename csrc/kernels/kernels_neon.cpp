#include "kernels/integer_neon.h"
#include "kernels/integer_rows.h"
#include "kernels/table.h"

namespace flash_moe::kernels {

constinit const Kernels kNeonFloat32 = float32_table("neon");
constinit const IntegerKernels kNeonInteger = integer_table<float_matmul>("neon");

}  // namespace flash_moe::kernels
