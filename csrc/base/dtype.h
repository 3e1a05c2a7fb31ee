#pragma once
// Element types as they stand in files, and the scalar conversions that define their meaning.

#include <bit>
#include <cstddef>
#include <cstdint>

namespace flash_moe {

enum class Dtype : uint8_t { f32, f16, bf16, f8_e4m3, u8, u32, i32, i64, i8, u16, i16, boolean, f64, f8_e5m2, u64 };

constexpr size_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::i64:
    case Dtype::u64:
      return 8;
    case Dtype::f32:
    case Dtype::u32:
    case Dtype::i32:
      return 4;
    case Dtype::f16:
    case Dtype::bf16:
    case Dtype::u16:
    case Dtype::i16:
      return 2;
    default:
      return 1;
  }
}

// The safetensors spelling, for messages.
constexpr const char* dtype_name(Dtype dtype) {
  constexpr const char* names[] = {"F32", "F16", "BF16", "F8_E4M3", "U8",  "U32",     "I32", "I64",
                                   "I8",  "U16", "I16",  "BOOL",    "F64", "F8_E5M2", "U64"};
  return names[static_cast<size_t>(dtype)];
}

inline float bf16_to_f32(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t f32_to_bf16(float x) {
  const auto u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t exponent = (x >> 10) & 31u;
  const uint32_t mantissa = x & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -tiny : tiny;
}

// OCP E4M3 (no infinity; 0x7f and 0xff are NaN).
inline float f8_e4m3_to_f32(uint8_t x) {
  const uint32_t exponent = (x >> 3) & 15u;
  const uint32_t mantissa = x & 7u;
  float value;
  if (exponent == 15 && mantissa == 7) {
    value = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent == 0) {
    value = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    value = std::bit_cast<float>(((exponent + 120) << 23) | (mantissa << 20));
  }
  return (x & 0x80u) ? -value : value;
}

}  // namespace flash_moe
