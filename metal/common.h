// Small functions that every kernel file uses.
#pragma once
#include <metal_stdlib>

#include "args.h"

namespace flash_moe {

// Function constants: a pipeline is specialised for them, so branches on them cost nothing.
constant uint first_format [[function_constant(0)]];
constant uint second_format [[function_constant(1)]];
constant uint delta_k_dim [[function_constant(2)]];
constant uint attention_head_dim [[function_constant(3)]];
constant bool kv_is_bf16 [[function_constant(4)]];
constant bool attention_has_gate [[function_constant(5)]];

enum Limits : uint {
  simd_width = 32,
  elements_per_lane = 8  // of a head or a state row of at most 256
};

inline float sigmoid(float x) { return 1.0f / (1.0f + metal::precise::exp(-x)); }

inline float silu(float x) { return x / (1.0f + metal::precise::exp(-x)); }

// log(1 + exp(x)); above 20 the 1 is below f32's precision. Below it, log(u) * y / (u - 1) with u = 1 + y is
// log1p(y): the rounding of u cancels.
inline float softplus(float x) {
  if (x > 20.0f) return x;
  const float y = metal::precise::exp(x);
  const float u = 1.0f + y;
  return u == 1.0f ? y : metal::precise::log(u) * (y / (u - 1.0f));
}

inline float bf16_to_f32(ushort bits) { return as_type<float>(uint(bits) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline ushort f32_to_bf16(float x) {
  const uint bits = as_type<uint>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return ushort((bits >> 16) | 0x40u);
  return ushort((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Element `index` of an array of ElementKind `kind` (not affine).
inline float load_element(const device uchar* base, ulong index, uint kind) {
  if (kind == element_f32) return ((const device float*)base)[index];
  if (kind == element_f16) return float(((const device half*)base)[index]);
  return bf16_to_f32(((const device ushort*)base)[index]);
}

}  // namespace flash_moe
