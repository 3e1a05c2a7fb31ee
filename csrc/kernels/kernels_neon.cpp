#include "kernels/integer_neon.h"
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

constinit const Kernels kNeonFloat32 = float32_table("neon");
constinit const IntegerKernels kNeonInteger = {
    .name = "neon", .prepared_bytes = fast_row_bytes, .prepare_row = prepare_fast_row, .matmul = matmul};

}  // namespace flash_moe::kernels
