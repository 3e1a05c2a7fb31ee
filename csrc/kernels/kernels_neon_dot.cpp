#include "kernels/integer_neon.h"
#include "kernels/integer_rows.h"

namespace flash_moe::kernels {
namespace {

void float_products(const MatmulArgs& args) { kNeonFloat32.matmul(args); }

}  // namespace

constinit const IntegerKernels kNeonDotInteger = integer_table<float_products>("neondot");

}  // namespace flash_moe::kernels
