#include "kernels/integer_neon.h"
#include "kernels/integer_rows.h"
#include "kernels/tables.h"

namespace flash_moe::kernels {
namespace {

void matmul(const MatmulArgs& args) {
  if (has_integer_codes(args.matrix)) {
    integer_matmul(args);
  } else {
    kNeonFloat32.matmul(args);
  }
}

}  // namespace

constinit const IntegerKernels kNeonDotInteger = {
    .name = "neondot", .prepared_bytes = fast_row_bytes, .prepare_row = prepare_fast_row, .matmul = matmul};

}  // namespace flash_moe::kernels
