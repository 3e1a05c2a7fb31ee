// Functions of the simdgroup, and barriers. The place of the call travels along, for the rig's divergence check.
#pragma once
#pragma clang system_header  // newer C++ than the kernels may use

#define MSL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
// The exchange is the rig's own traffic: it is kept out of the sanitizers' sight, so that it orders nothing.
#if MSL_ADDRESS_SPACES
#define MSL_UNWATCHED MSL_INLINE
#else
#define MSL_UNWATCHED __attribute__((noinline, disable_sanitizer_instrumentation))
#endif

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<int>(a) | static_cast<int>(b));
}
MSL_INLINE void threadgroup_barrier(mem_flags flags, MSL_SITE) {
  gpu_threadgroup_barrier(static_cast<int>(flags), file, line);
}
MSL_INLINE void simdgroup_barrier(mem_flags flags, MSL_SITE) {
  gpu_simdgroup_barrier(static_cast<int>(flags), file, line);
}

namespace shim {

// No kernel that Apple's compiler has been seen to accept uses a simdgroup function on bfloat, bool or 64 bits.
template <class T>
constexpr bool simd_type = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, int> || is_same_v<T, uint> ||
                           is_same_v<T, short> || is_same_v<T, ushort>;
template <class T>
using if_simd = typename enable_if<simd_type<typename components<T>::type>, T>::type;

template <class T>
struct Lanes {
  const char* base;
  MSL_UNWATCHED T at(uint lane) const { return *reinterpret_cast<const T*>(base + gpu_lane_bytes * lane); }
};

template <class T>
MSL_UNWATCHED Lanes<T> exchange(T value, const char* file, int line) {
  static_assert(sizeof(T) <= gpu_lane_bytes, "a lane's slot is smaller");
  *reinterpret_cast<T*>(gpu_lane_slot()) = value;
  return {gpu_lane_exchange(file, line)};
}

// As a tree of halves: the order is not documented by Apple; tolerances of tests hold for any.
template <class T, class Operation>
MSL_UNWATCHED T reduce(T value, Operation operation, const char* file, int line) {
  const Lanes<T> lanes = exchange(value, file, line);
  T t[32];
  for (uint i = 0; i < 32; ++i) t[i] = lanes.at(i);
  for (int width = 16; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) t[i] = operation(t[i], t[i + width]);
  }
  return t[0];
}

template <class T>
MSL_INLINE T undefined_value() {
  T t;
  __builtin_memset(&t, 0xff, sizeof t);
  return t;
}

// What lane `from` handed over; reading a lane that does not exist is undefined, here NaN.
template <class T>
MSL_UNWATCHED T pick(T value, int from, const char* file, int line) {
  const Lanes<T> lanes = exchange(value, file, line);
  return from >= 0 && from < 32 ? lanes.at(static_cast<uint>(from)) : undefined_value<T>();
}

}  // namespace shim

#define MSL_REDUCTION(name, expression)                             \
  template <class T>                                                \
  MSL_INLINE shim::if_simd<T> name(T value, MSL_SITE) {             \
    return shim::reduce(value, [](T a, T b) -> T { return expression; }, file, line); \
  }
MSL_REDUCTION(simd_sum, a + b)
MSL_REDUCTION(simd_min, metal::min(a, b))
MSL_REDUCTION(simd_max, metal::max(a, b))
MSL_REDUCTION(simd_or, a | b)
#undef MSL_REDUCTION

#define MSL_SHUFFLE(name, argument, from)                                                  \
  template <class T>                                                                       \
  MSL_INLINE shim::if_simd<T> name(T value, ushort argument, MSL_SITE) {                   \
    return shim::pick(value, static_cast<int>(from), file, line);                          \
  }
MSL_SHUFFLE(simd_shuffle, lane, lane)
MSL_SHUFFLE(simd_broadcast, lane, lane)
MSL_SHUFFLE(simd_shuffle_xor, mask, gpu_lane() ^ mask)
MSL_SHUFFLE(simd_shuffle_down, delta, static_cast<int>(gpu_lane()) + delta)
MSL_SHUFFLE(simd_shuffle_up, delta, static_cast<int>(gpu_lane()) - delta)
#undef MSL_SHUFFLE

MSL_INLINE bool simd_all(bool value, MSL_SITE) {
  return shim::reduce<int>(value, [](int a, int b) { return a & b; }, file, line) != 0;
}
MSL_INLINE bool simd_any(bool value, MSL_SITE) {
  return shim::reduce<int>(value, [](int a, int b) { return a | b; }, file, line) != 0;
}

}  // namespace metal
