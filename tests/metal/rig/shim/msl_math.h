// <metal_math>: plain overloads for float and half and their vectors, as Metal has them. So max(float, int) is ambiguous
// and exp(bfloat) is exp(float). Half is computed in float and rounded.
#pragma once
#pragma clang system_header  // newer C++ than the kernels may use

namespace metal {

#define MSL_SCALAR_1(name, expression) \
  MSL_INLINE float name(float x) { return expression; } \
  MSL_INLINE half name(half h) { const float x = h; return static_cast<half>(expression); }
#define MSL_VECTOR_1(name, V) \
  MSL_INLINE V name(V x) { V r; for (int i = 0; i < shim::components<V>::count; ++i) r[i] = name(static_cast<typename shim::components<V>::type>(x[i])); return r; }
#define MSL_MATH_1(name, expression) \
  MSL_SCALAR_1(name, expression) MSL_VECTOR_1(name, float2) MSL_VECTOR_1(name, float3) MSL_VECTOR_1(name, float4)

#define MSL_ALL_MATH                                                  \
  MSL_MATH_1(exp, __builtin_expf(x))                                  \
  MSL_MATH_1(exp2, __builtin_exp2f(x))                                \
  MSL_MATH_1(log, __builtin_logf(x))                                  \
  MSL_MATH_1(log2, __builtin_log2f(x))                                \
  MSL_MATH_1(sin, __builtin_sinf(x))                                  \
  MSL_MATH_1(cos, __builtin_cosf(x))                                  \
  MSL_MATH_1(tanh, __builtin_tanhf(x))                                \
  MSL_MATH_1(sqrt, __builtin_sqrtf(x))                                \
  MSL_MATH_1(rsqrt, (1.0f / __builtin_sqrtf(x)))                      \
  MSL_MATH_1(floor, __builtin_floorf(x))                              \
  MSL_MATH_1(rint, __builtin_rintf(x))                                \
  MSL_MATH_1(fabs, __builtin_fabsf(x))

MSL_ALL_MATH
// Under math mode safe the plain functions are the precise ones.
namespace precise {
MSL_ALL_MATH
}
namespace fast {
MSL_ALL_MATH
}
#undef MSL_ALL_MATH
#undef MSL_MATH_1
#undef MSL_VECTOR_1
#undef MSL_SCALAR_1

MSL_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MSL_INLINE half fma(half a, half b, half c) { return static_cast<half>(__builtin_fmaf(a, b, c)); }
MSL_INLINE float4 fma(float4 a, float4 b, float4 c) { return __builtin_elementwise_fma(a, b, c); }
MSL_INLINE float2 fma(float2 a, float2 b, float2 c) { return __builtin_elementwise_fma(a, b, c); }

// A NaN operand loses, as fmin and fmax of IEEE 754-2008.
#define MSL_MIN_MAX_FLOAT(T)                                                                        \
  MSL_INLINE T min(T a, T b) { return static_cast<T>(__builtin_fminf(a, b)); }                      \
  MSL_INLINE T max(T a, T b) { return static_cast<T>(__builtin_fmaxf(a, b)); }                      \
  MSL_INLINE T abs(T a) { return static_cast<T>(__builtin_fabsf(a)); }                              \
  MSL_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
#define MSL_MIN_MAX_INT(T)                                                                          \
  MSL_INLINE T min(T a, T b) { return b < a ? b : a; }                                              \
  MSL_INLINE T max(T a, T b) { return a < b ? b : a; }                                              \
  MSL_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
MSL_MIN_MAX_FLOAT(float)
MSL_MIN_MAX_FLOAT(half)
MSL_MIN_MAX_INT(int)
MSL_MIN_MAX_INT(uint)
MSL_MIN_MAX_INT(short)
MSL_MIN_MAX_INT(ushort)
MSL_MIN_MAX_INT(long)
MSL_MIN_MAX_INT(ulong)
#undef MSL_MIN_MAX_FLOAT
#undef MSL_MIN_MAX_INT

MSL_INLINE bool isnan(float x) { return x != x; }
template <class T>
MSL_INLINE T select(T if_false, T if_true, bool condition) { return condition ? if_true : if_false; }
MSL_INLINE float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
MSL_INLINE uint popcount(uint x) { return static_cast<uint>(__builtin_popcount(x)); }
MSL_INLINE uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 32 ? x : (x >> offset) & ((1u << bits) - 1u);
}

}  // namespace metal
