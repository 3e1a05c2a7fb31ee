// Linear attention by Accelerate's BLAS, on Apple systems: a step of the gated delta rule is two products and an outer
// product with a head's state. Accelerate's order of sums is its own, so the table that has this function is taken by
// name only.

#include <Accelerate/Accelerate.h>

#include <cstring>

#include "kernels/tables.h"

namespace flash_moe::kernels {

void accelerate_delta_step(const DeltaStepArgs& a) {
  const auto rows = static_cast<int>(a.v_dim);
  const auto cols = static_cast<int>(a.k_dim);
  if (a.state != a.state_in) std::memcpy(a.state, a.state_in, static_cast<size_t>(a.v_dim * a.k_dim) * sizeof(float));
  cblas_sscal(rows * cols, a.decay, a.state, 1);
  // out = beta (v - S k); S += out k^T; out = S q
  std::memcpy(a.out, a.v, static_cast<size_t>(a.v_dim) * sizeof(float));
  cblas_sgemv(CblasRowMajor, CblasNoTrans, rows, cols, -a.beta, a.state, cols, a.k, 1, a.beta, a.out, 1);
  cblas_sger(CblasRowMajor, rows, cols, 1.0f, a.out, 1, a.k, 1, a.state, cols);
  cblas_sgemv(CblasRowMajor, CblasNoTrans, rows, cols, 1.0f, a.state, cols, a.q, 1, 0.0f, a.out, 1);
}

}  // namespace flash_moe::kernels
