// libgcc 12 lacks the conversions to bfloat that clang calls: round to nearest, ties to even, as MSL's.
#include <cstdint>
#include <cstring>

extern "C" __bf16 __truncsfbf2(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const auto half = static_cast<uint16_t>(rounded);
  __bf16 result;
  std::memcpy(&result, &half, sizeof result);
  return result;
}

extern "C" __bf16 __truncdfbf2(double value) { return __truncsfbf2(static_cast<float>(value)); }
