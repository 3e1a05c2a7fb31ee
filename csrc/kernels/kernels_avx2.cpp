#include "kernels/integer_avx2.h"
#include "kernels/integer_rows.h"
#include "kernels/table.h"
#include "kernels/tables.h"

namespace flash_moe::kernels {
namespace {

void matmul(const MatmulArgs& args) {
  if (has_integer_codes(args.matrix)) {
    integer_matmul(args);
  } else {
    float_matmul(args);
  }
}

}  // namespace

constinit const Kernels kAvx2Float32 = float32_table("avx2");
constinit const IntegerKernels kAvx2Integer = {
    .name = "avx2", .prepared_bytes = fast_row_bytes, .prepare_row = prepare_fast_row, .matmul = matmul};

}  // namespace flash_moe::kernels
