#pragma once
// The part of BLAS that csrc/kernels/kernels_accelerate.cpp calls, as its definition says, so that the file runs on systems
// without Accelerate. Row-major, not transposed.

enum CBLAS_ORDER { CblasRowMajor = 101 };
enum CBLAS_TRANSPOSE { CblasNoTrans = 111 };

// x *= alpha
inline void cblas_sscal(int n, float alpha, float* x, int step) {
  for (int i = 0; i < n; ++i) x[i * step] *= alpha;
}

// y = alpha A x + beta y; with beta 0, y is not read
inline void cblas_sgemv(CBLAS_ORDER, CBLAS_TRANSPOSE, int rows, int cols, float alpha, const float* a, int stride,
                        const float* x, int x_step, float beta, float* y, int y_step) {
  for (int r = 0; r < rows; ++r) {
    float sum = 0;
    for (int c = cols - 1; c >= 0; --c) sum += a[r * stride + c] * x[c * x_step];
    y[r * y_step] = beta == 0 ? alpha * sum : alpha * sum + beta * y[r * y_step];
  }
}

// A += alpha x y^T
inline void cblas_sger(CBLAS_ORDER, int rows, int cols, float alpha, const float* x, int x_step, const float* y,
                       int y_step, float* a, int stride) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < cols; ++c) a[r * stride + c] += alpha * x[r * x_step] * y[c * y_step];
}
