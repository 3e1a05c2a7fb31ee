// simdgroup_matrix of 8 x 8: two elements a lane, in the layout that MLX's kernels hard-code.
#pragma once
#pragma clang system_header  // newer C++ than the kernels may use

namespace metal {

template <class T, int rows, int cols>
struct simdgroup_matrix {
  static_assert(rows == 8 && cols == 8, "Metal has 8 x 8 only");
  typedef T Pair __attribute__((ext_vector_type(2)));
  Pair elements;

  simdgroup_matrix() = default;
  MSL_INLINE explicit simdgroup_matrix(T diagonal) {
    for (int j = 0; j < 2; ++j) elements[j] = row() == col() + j ? diagonal : T(0);
  }
  MSL_INLINE Pair& thread_elements() { return elements; }

  static MSL_INLINE int row() { return static_cast<int>((gpu_lane() / 4 & 4) + gpu_lane() / 2 % 4); }
  static MSL_INLINE int col() { return static_cast<int>((gpu_lane() / 4 & 2) * 2 + gpu_lane() % 2 * 2); }
  static MSL_INLINE uint lane_of(int r, int c) {
    return static_cast<uint>((r & 4 ? 16 : 0) + (c & 4 ? 8 : 0) + (r & 3) * 2 + (c & 2 ? 1 : 0));
  }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;

template <class T, int rows, int cols = rows>
MSL_INLINE simdgroup_matrix<T, rows, cols> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, rows, cols> m;
  m.elements[0] = m.elements[1] = value;
  return m;
}

namespace shim {

template <class A, class B>
struct Factors {
  typename simdgroup_matrix<A, 8, 8>::Pair a;
  typename simdgroup_matrix<B, 8, 8>::Pair b;
};

}  // namespace shim

// d = a b + c. The sum's order inside the hardware is unknown; here it is a chain of fma over k.
template <class D, class A, class B, class C>
MSL_UNWATCHED void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                                 simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c, MSL_SITE) {
  typedef simdgroup_matrix<D, 8, 8> M;
  const auto lanes = shim::exchange(shim::Factors<A, B>{a.elements, b.elements}, file, line);
  typename M::Pair result;
  for (int j = 0; j < 2; ++j) {
    float sum = static_cast<float>(c.elements[j]);
    const int col = M::col() + j;
    for (int k = 0; k < 8; ++k) {
      const float left = static_cast<float>(lanes.at(M::lane_of(M::row(), k)).a[k & 1]);
      const float right = static_cast<float>(lanes.at(M::lane_of(k, col)).b[col & 1]);
      sum = __builtin_fmaf(left, right, sum);
    }
    result[j] = static_cast<D>(sum);
  }
  d.elements = result;
}

#define MSL_MATRIX_MEMORY(SPACE)                                                                              \
  template <class T>                                                                                          \
  MSL_INLINE void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const SPACE T* from, ulong stride = 8,         \
                                 ulong2 origin = ulong2{0, 0}, bool transpose = false, MSL_SITE) {            \
    gpu_simdgroup_barrier(0, file, line);                                                                     \
    for (int j = 0; j < 2; ++j) {                                                                             \
      const ulong r = static_cast<ulong>(transpose ? m.col() + j : m.row());                                  \
      const ulong c = static_cast<ulong>(transpose ? m.row() : m.col() + j);                                  \
      m.elements[j] = from[(origin[1] + r) * stride + origin[0] + c];                                         \
    }                                                                                                         \
  }                                                                                                           \
  template <class T>                                                                                          \
  MSL_INLINE void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T* to, ulong stride = 8,                 \
                                  ulong2 origin = ulong2{0, 0}, bool transpose = false, MSL_SITE) {           \
    gpu_simdgroup_barrier(0, file, line);                                                                     \
    for (int j = 0; j < 2; ++j) {                                                                             \
      const ulong r = static_cast<ulong>(transpose ? m.col() + j : m.row());                                  \
      const ulong c = static_cast<ulong>(transpose ? m.row() : m.col() + j);                                  \
      to[(origin[1] + r) * stride + origin[0] + c] = m.elements[j];                                           \
    }                                                                                                         \
  }
MSL_MATRIX_MEMORY(MSL_DEVICE)
#if MSL_ADDRESS_SPACES
MSL_MATRIX_MEMORY(MSL_THREADGROUP)
#endif
#undef MSL_MATRIX_MEMORY

}  // namespace metal
