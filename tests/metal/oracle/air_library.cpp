// The air.* functions that the compared kernels call, under the names that Apple's compiler gives them. A kernel that
// needs another one fails to load, with its name. simd_sum is the rig's tree, as in shim/msl_simdgroup.h.
#include "kernel_abi.h"

namespace {

constexpr int kSimd = 1;
constexpr int kBarrier = 2;

template <class Operation>
float reduce(float value, Operation operation) {
  *reinterpret_cast<float*>(gpu_lane_slot()) = value;
  const char* base = gpu_lane_exchange("air", kSimd);
  float t[32];
  for (int i = 0; i < 32; ++i) t[i] = *reinterpret_cast<const float*>(base + i * gpu_lane_bytes);
  for (int width = 16; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) t[i] = operation(t[i], t[i + width]);
  }
  return t[0];
}

}  // namespace

extern "C" {

float air_simd_sum(float x) __asm__("air.simd_sum.f32");
float air_simd_sum(float x) {
  return reduce(x, [](float a, float b) { return a + b; });
}
float air_simd_max(float x) __asm__("air.simd_max.f32");
float air_simd_max(float x) {
  return reduce(x, [](float a, float b) { return __builtin_fmaxf(a, b); });
}
void air_barrier(int flags, int scope) __asm__("air.wg.barrier");
void air_barrier(int flags, int) { gpu_threadgroup_barrier(flags, "air", kBarrier); }

float air_from_int(int x) __asm__("air.convert.f.f32.s.i32");
float air_from_int(int x) { return static_cast<float>(x); }
float air_from_uint(unsigned x) __asm__("air.convert.f.f32.u.i32");
float air_from_uint(unsigned x) { return static_cast<float>(x); }
float air_rsqrt(float x) __asm__("air.rsqrt.f32");
float air_rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
float air_exp(float x) __asm__("air.fast_exp.f32");
float air_exp(float x) { return __builtin_expf(x); }
float air_fmax(float a, float b) __asm__("air.fmax.f32");
float air_fmax(float a, float b) { return __builtin_fmaxf(a, b); }
int air_min(int a, int b) __asm__("air.min.s.i32");
int air_min(int a, int b) { return a < b ? a : b; }
int air_clamp(int x, int low, int high) __asm__("air.clamp.s.i32");
int air_clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
unsigned char air_predicate(unsigned char x) __asm__("air.normalize_function_constant_predicate.i8");
unsigned char air_predicate(unsigned char x) { return x != 0; }

}  // extern "C"
