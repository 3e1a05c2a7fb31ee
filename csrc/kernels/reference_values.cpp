#include "kernels/reference_values.h"

#include <cmath>

namespace flash_moe::kernels::reference {

float element(const Matrix& m, int64_t row, int64_t col) {
  const int64_t at = row * m.cols + col;
  const int64_t scale_at = m.group == 0 ? 0 : row * m.scales_per_row() + col / m.group;
  switch (m.format) {
    case MatrixFormat::f32:
      return load_float(m.data, at, Dtype::f32);
    case MatrixFormat::f16:
      return load_float(m.data, at, Dtype::f16);
    case MatrixFormat::bf16:
      return load_float(m.data, at, Dtype::bf16);
    case MatrixFormat::fp8_block:
      return f8_e4m3_to_f32(m.data[at]) *
             load_float(m.scales, (row / 128) * m.scales_per_row() + col / 128, m.scale_dtype);
    case MatrixFormat::affine: {
      const auto code = static_cast<float>(load_code(m.data + row * m.row_bytes(), col, m.bits));
      return std::fma(code, load_float(m.scales, scale_at, m.scale_dtype),
                      load_float(m.biases, scale_at, m.scale_dtype));
    }
    case MatrixFormat::mxfp8:
      return f8_e4m3_to_f32(m.data[at]) * e8m0_to_f32(m.scales[scale_at]);
    case MatrixFormat::mxfp4:
    case MatrixFormat::nvfp4: {
      const uint32_t code = load_code(m.data + row * m.row_bytes(), col, 4);
      const float scale = m.format == MatrixFormat::mxfp4 ? e8m0_to_f32(m.scales[scale_at])
                                                          : f8_e4m3_to_f32(m.scales[scale_at]);
      return 0.5f * static_cast<float>(kE2m1Halves[code]) * scale;
    }
  }
  return 0;
}

}  // namespace flash_moe::kernels::reference
