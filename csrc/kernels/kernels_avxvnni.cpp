// The integer products of processors that have VNNI without AVX-512; everything else is the AVX2 file's.

#include "kernels/integer_avx2.h"
#include "kernels/integer_rows.h"

namespace flash_moe::kernels {
namespace {

void float_products(const MatmulArgs& args) { kAvx2Float32.matmul(args); }

}  // namespace

constinit const IntegerKernels kAvxVnniInteger = integer_table<float_products>("avxvnni");

}  // namespace flash_moe::kernels
