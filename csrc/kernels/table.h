#pragma once
// For ISA files, last: the table of an ISA, from the functions that the headers before it define.

#include "kernels/float_matmul.h"
#include "kernels/vector_kernels.h"

namespace flash_moe::kernels {
namespace {

constexpr Kernels float32_table(const char* name) {
  return {.name = name,
          .precision = Precision::float32,
          .prepared_bytes = float_row_bytes,
          .prepare_row = copy_float_row,
          .matmul = float_matmul,
          .rms_norm = rms_norm,
          .silu_mul = silu_mul,
          .axpy = axpy,
          .attention = attention,
          .conv_silu = conv_silu,
          .delta_step = delta_step,
          .f32_to_bf16 = convert_to_bf16,
          .dequantise_row = dequantise_row};
}

}  // namespace
}  // namespace flash_moe::kernels
