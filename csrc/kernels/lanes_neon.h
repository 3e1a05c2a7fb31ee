#pragma once
// Sixteen f32 lanes as four NEON registers; the contracts are those of lanes_avx512.h. Armv8.0.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace flash_moe::kernels {
namespace {

struct Lanes {
  float32x4_t v[4];
};

constexpr int kTileOuts = 2;
constexpr int kTileRows = 2;
constexpr int kAttentionHeads = 2;
constexpr int kAttentionVectors = 2;

template <typename Fn>
inline Lanes each(Fn fn) {
  return {{fn(0), fn(1), fn(2), fn(3)}};
}

inline Lanes broadcast(float x) {
  return each([&](int) { return vdupq_n_f32(x); });
}
inline Lanes zero() { return broadcast(0.0f); }
inline Lanes load(const float* p) {
  return each([&](int j) { return vld1q_f32(p + 4 * j); });
}
inline void store(float* p, Lanes x) {
  for (int j = 0; j < 4; ++j) vst1q_f32(p + 4 * j, x.v[j]);
}
// Arm has no such stores that are ordered like others; what they would save is not known here.
inline void store_past_caches(float* p, Lanes x) { store(p, x); }
inline void end_stores_past_caches() {}
inline Lanes load_part(const float* p, int64_t n) {
  float buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
  return load(buffer);
}
inline void store_part(float* p, Lanes x, int64_t n) {
  float buffer[16];
  store(buffer, x);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(float));
}

inline Lanes add(Lanes a, Lanes b) {
  return each([&](int j) { return vaddq_f32(a.v[j], b.v[j]); });
}
inline Lanes sub(Lanes a, Lanes b) {
  return each([&](int j) { return vsubq_f32(a.v[j], b.v[j]); });
}
inline Lanes mul(Lanes a, Lanes b) {
  return each([&](int j) { return vmulq_f32(a.v[j], b.v[j]); });
}
inline Lanes div(Lanes a, Lanes b) {
  return each([&](int j) { return vdivq_f32(a.v[j], b.v[j]); });
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return each([&](int j) { return vfmaq_f32(c.v[j], a.v[j], b.v[j]); });
}
inline Lanes larger(Lanes a, Lanes b) {
  return each([&](int j) { return vbslq_f32(vcgtq_f32(a.v[j], b.v[j]), a.v[j], b.v[j]); });
}
inline Lanes smaller(Lanes a, Lanes b) {
  return each([&](int j) { return vbslq_f32(vcltq_f32(a.v[j], b.v[j]), a.v[j], b.v[j]); });
}
inline Lanes power_of_two(Lanes shifted) {
  return each([&](int j) {
    const uint32x4_t biased = vaddq_u32(vreinterpretq_u32_f32(shifted.v[j]), vdupq_n_u32(127));
    return vreinterpretq_f32_u32(vshlq_n_u32(biased, 23));
  });
}

inline float32x4_t reduce_to_four(Lanes x) {
  return vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
}
inline float reduce(Lanes x) {
  const float32x4_t four = reduce_to_four(x);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(vpadd_f32(two, two), 0);
}
// out[j] = what is left of reduce() from four[j] on.
inline void reduce4_of_four(const float32x4_t* four, float* out) {
  float32x2_t two[4];
  for (int j = 0; j < 4; ++j) two[j] = vadd_f32(vget_low_f32(four[j]), vget_high_f32(four[j]));
  vst1q_f32(out, vpaddq_f32(vcombine_f32(two[0], two[1]), vcombine_f32(two[2], two[3])));
}
inline void reduce4(const Lanes* x, float* out) {
  const float32x4_t four[4] = {reduce_to_four(x[0]), reduce_to_four(x[1]), reduce_to_four(x[2]), reduce_to_four(x[3])};
  reduce4_of_four(four, out);
}
// The rest of reduce() where a's, b's, c's and d's lanes j and j + 8 are added already: out[0] to out[3].
inline void reduce4_of_eight(Lanes ab, Lanes cd, float* out) {
  const float32x4_t four[4] = {vaddq_f32(ab.v[0], ab.v[1]), vaddq_f32(ab.v[2], ab.v[3]), vaddq_f32(cd.v[0], cd.v[1]),
                               vaddq_f32(cd.v[2], cd.v[3])};
  reduce4_of_four(four, out);
}
inline Lanes low_twice(Lanes x) { return {{x.v[0], x.v[1], x.v[0], x.v[1]}}; }
inline float reduce_larger(Lanes x) {
  float values[16];
  store(values, x);
  float largest = values[0];
  for (int j = 1; j < 16; ++j) largest = values[j] > largest ? values[j] : largest;
  return largest;
}

inline float32x4_t from_bf16(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }
inline Lanes load_f32(const void* p) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  return each([&](int j) { return vreinterpretq_f32_u8(vld1q_u8(bytes + 16 * j)); });
}
inline Lanes load_f32_part(const void* p, int64_t n) {
  float buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
  return load(buffer);
}
inline Lanes load_bf16(const void* p) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  return each([&](int j) { return from_bf16(vreinterpret_u16_u8(vld1_u8(bytes + 8 * j))); });
}
inline Lanes load_bf16_part(const void* p, int64_t n) {
  uint16_t buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return load_bf16(buffer);
}
inline Lanes load_f16(const void* p) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  return each([&](int j) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(bytes + 8 * j))); });
}
inline Lanes load_f16_part(const void* p, int64_t n) {
  uint16_t buffer[16] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return load_f16(buffer);
}
inline float f16_value(uint16_t x) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0); }

inline uint16x4_t to_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}
inline void store_bf16(uint16_t* p, Lanes x) {
  for (int j = 0; j < 4; ++j) vst1_u16(p + 4 * j, to_bf16(x.v[j]));
}
inline void store_bf16_part(uint16_t* p, Lanes x, int64_t n) {
  uint16_t buffer[16];
  store_bf16(buffer, x);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(uint16_t));
}

// 16 powers of two by their exponents' codes; 255 is NaN.
inline Lanes e8m0_lanes(const uint8_t* p) {
  return each([p](int j) {
    uint32_t word;
    std::memcpy(&word, p + 4 * j, sizeof word);
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)));
    const uint32x4_t code = vmovl_u16(vget_low_u16(wide));
    const uint32x4_t least = vandq_u32(vceqq_u32(code, vdupq_n_u32(0)), vdupq_n_u32(0x00400000));
    const uint32x4_t nan = vandq_u32(vceqq_u32(code, vdupq_n_u32(255)), vdupq_n_u32(0x7fc00000));
    return vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vshlq_n_u32(code, 23), least), nan));
  });
}

struct NanSearch {
  uint8x16_t least = vdupq_n_u8(0x7f);  // of the bits that keep a byte from being one
  void look_at(const uint8_t* p) {
    const uint8x16_t missing[2] = {vbicq_u8(vdupq_n_u8(0x7f), vld1q_u8(p)), vbicq_u8(vdupq_n_u8(0x7f), vld1q_u8(p + 16))};
    least = vminq_u8(least, vminq_u8(missing[0], missing[1]));
  }
  bool found() const { return vminvq_u8(least) == 0; }
};

inline Lanes e4m3_numbers_over_256(const uint8_t* p) {
  const int8x16_t raw = vreinterpretq_s8_u8(vld1q_u8(p));
  float32x4_t out[4];
  for (int j = 0; j < 2; ++j) {
    const uint16x8_t w = vreinterpretq_u16_s16(vshll_n_s8(j == 0 ? vget_low_s8(raw) : vget_high_s8(raw), 7));
    const uint16x8_t half = vandq_u16(w, vdupq_n_u16(0xbf80));
    out[2 * j] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half)));
    out[2 * j + 1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(half)));
  }
  return {{out[0], out[1], out[2], out[3]}};
}

inline Lanes e4m3_over_256(const uint8_t* p) {
  const uint8x16_t raw = vld1q_u8(p);
  float32x4_t out[4];
  for (int j = 0; j < 2; ++j) {
    const uint16x8_t w = vmovl_u8(j == 0 ? vget_low_u8(raw) : vget_high_u8(raw));
    const uint16x8_t magnitude = vandq_u16(w, vdupq_n_u16(0x7f));
    const uint16x8_t sign = vshlq_n_u16(veorq_u16(w, magnitude), 8);
    const uint16x8_t nan = vandq_u16(vceqq_u16(magnitude, vdupq_n_u16(0x7f)), vdupq_n_u16(0x7e00));
    const uint16x8_t half = vorrq_u16(vorrq_u16(sign, nan), vshlq_n_u16(magnitude, 7));
    out[2 * j] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half)));
    out[2 * j + 1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(half)));
  }
  return {{out[0], out[1], out[2], out[3]}};
}

// Exactly `bytes` bytes (4, 6, 8, 10, 12 or 16), at the bottom of a register.
template <int bytes>
inline uint8x16_t load_bytes(const uint8_t* p) {
  if constexpr (bytes == 16) return vld1q_u8(p);
  uint64_t low = 0;
  uint64_t high = 0;
  std::memcpy(&low, p, bytes < 8 ? bytes : 8);
  if constexpr (bytes > 8) std::memcpy(&high, p + 8, bytes - 8);
  return vcombine_u8(vcreate_u8(low), vcreate_u8(high));
}

// Byte and shift of 16 codes within their 2 * bits bytes: a code lies in the 16 bits that start at its byte.
template <int bits>
struct CodePlaces {
  uint8_t bytes[32] = {};
  int16_t shifts[16] = {};
  constexpr CodePlaces() {
    for (int i = 0; i < 16; ++i) {
      const int first = i * bits / 8;
      shifts[i] = static_cast<int16_t>(-(i * bits % 8));
      bytes[2 * i] = static_cast<uint8_t>(first);
      bytes[2 * i + 1] = static_cast<uint8_t>(first + 1 < 2 * bits ? first + 1 : 0xff);
    }
  }
};
template <int bits>
constexpr CodePlaces<bits> kCodePlaces;

// 16 codes of a little-endian bit stream, from exactly 2 * bits bytes.
template <int bits>
inline uint8x16_t code_bytes(const uint8_t* p) {
  const uint8x16_t raw = load_bytes<2 * bits>(p);
  if constexpr (bits == 8) return raw;
  uint8x8_t out[2];
  for (int j = 0; j < 2; ++j) {
    const uint8x16_t spread = vqtbl1q_u8(raw, vld1q_u8(kCodePlaces<bits>.bytes + 16 * j));
    const uint16x8_t words = vshlq_u16(vreinterpretq_u16_u8(spread), vld1q_s16(kCodePlaces<bits>.shifts + 8 * j));
    out[j] = vmovn_u16(vandq_u16(words, vdupq_n_u16((1u << bits) - 1u)));
  }
  return vcombine_u8(out[0], out[1]);
}
template <int bits>
inline Lanes codes(const uint8_t* p) {
  const uint8x16_t bytes = code_bytes<bits>(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes));
  const uint16x8_t high = vmovl_u8(vget_high_u8(bytes));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}

inline Lanes e2m1_doubled(const uint8_t* p) {
  static constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const int8x16_t values = vqtbl1q_s8(vld1q_s8(kDoubled), code_bytes<4>(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(values));
  const int16x8_t high = vmovl_s8(vget_high_s8(values));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}

}  // namespace
}  // namespace flash_moe::kernels
