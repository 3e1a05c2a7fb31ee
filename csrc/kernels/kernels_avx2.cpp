#include "kernels/integer_avx2.h"
#include "kernels/integer_rows.h"
#include "kernels/table.h"

namespace flash_moe::kernels {

constinit const Kernels kAvx2Float32 = float32_table("avx2");
constinit const IntegerKernels kAvx2Integer = integer_table<float_matmul>("avx2");

}  // namespace flash_moe::kernels
