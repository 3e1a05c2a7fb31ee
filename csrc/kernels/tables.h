#pragma once
// The tables of the ISA files. Constant data: naming one runs nothing.

#include "kernels/kernels.h"

namespace flash_moe::kernels {

// What Precision::fast replaces in the float table of the same ISA.
struct IntegerKernels {
  const char* name;
  size_t (*prepared_bytes)(int64_t cols);
  void (*prepare_row)(const float* x, int64_t cols, uint8_t* dst);
  void (*matmul)(const MatmulArgs& args);
};

extern const IntegerKernels kAvx2Integer;
extern const IntegerKernels kAvxVnniInteger;
extern const IntegerKernels kAvx512VnniInteger;
extern const IntegerKernels kAmxInteger;
extern const IntegerKernels kNeonInteger;
extern const IntegerKernels kNeonDotInteger;

extern const Kernels kAvx2Float32;
extern const Kernels kAvx512Float32;
extern const Kernels kNeonFloat32;

// Kernels::delta_step by Accelerate. Apple systems only.
void accelerate_delta_step(const DeltaStepArgs& args);

}  // namespace flash_moe::kernels
