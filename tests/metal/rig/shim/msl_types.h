// Scalars, vectors, and the conversions between them that MSL does element by element.
#pragma once
#pragma clang system_header  // newer C++ than the kernels may use

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t, uchar;
typedef unsigned short uint16_t, ushort;
typedef unsigned int uint32_t, uint;
typedef unsigned long uint64_t, ulong, size_t;
typedef _Float16 half;
typedef __bf16 bfloat;

#define MSL_VECTORS(T, name)                               \
  typedef T name##2 __attribute__((ext_vector_type(2)));   \
  typedef T name##3 __attribute__((ext_vector_type(3)));   \
  typedef T name##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(float, float)
MSL_VECTORS(half, half)
MSL_VECTORS(bfloat, bfloat)
MSL_VECTORS(int, int)
MSL_VECTORS(uint, uint)
MSL_VECTORS(short, short)
MSL_VECTORS(ushort, ushort)
MSL_VECTORS(uchar, uchar)
MSL_VECTORS(ulong, ulong)
#undef MSL_VECTORS

namespace metal {

using ::bfloat;
using ::half;
using ::int32_t;
using ::size_t;
using ::uint;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;

template <class A, class B>
constexpr bool is_same_v = false;
template <class A>
constexpr bool is_same_v<A, A> = true;
template <class T>
constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;

// Packed vectors: aligned as their element. float4(p[i]) is the way to read one.
template <class T, int n>
struct packed_vec {
  T v[n];
  packed_vec() = default;
  packed_vec(const packed_vec&) = default;
#if MSL_ADDRESS_SPACES
  MSL_INLINE packed_vec(const MSL_DEVICE packed_vec& other) {
    for (int i = 0; i < n; ++i) v[i] = other.v[i];
  }
#endif
  MSL_INLINE T operator[](int i) const { return v[i]; }
};

namespace shim {

template <bool b, class T>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};

// Number and type of components: 1 and itself for a scalar.
template <class T>
struct components {
  static constexpr int count = 1;
  typedef T type;
};
#define MSL_COMPONENTS(n)                                    \
  template <class T>                                         \
  struct components<T __attribute__((ext_vector_type(n)))> { \
    static constexpr int count = n;                          \
    typedef T type;                                          \
  };
MSL_COMPONENTS(2)
MSL_COMPONENTS(3)
MSL_COMPONENTS(4)
#undef MSL_COMPONENTS
template <class T, int n>
struct components<packed_vec<T, n>> {
  static constexpr int count = n;
  typedef T type;
};

template <class V, int at>
MSL_INLINE void put(V&) {}
template <class V, int at, class A, class... Rest>
MSL_INLINE void put(V& v, A a, Rest... rest) {
  typedef typename components<V>::type E;
  if constexpr (components<A>::count == 1) {
    v[at] = static_cast<E>(a);
  } else {
    for (int i = 0; i < components<A>::count; ++i) v[at + i] = static_cast<E>(a[i]);
  }
  put<V, at + components<A>::count>(v, rest...);
}

// float4(a, b, c, d), float4(x), float4(other_vector): the rewriter turns every vector constructor into this.
template <class V, class... A>
MSL_INLINE V make(A... a) {
  constexpr int wanted = components<V>::count;
  constexpr int given = (0 + ... + components<A>::count);
  V v;
  if constexpr (sizeof...(A) == 1 && given == 1) {
    for (int i = 0; i < wanted; ++i) v[i] = static_cast<typename components<V>::type>((a, ...));
  } else {
    static_assert(given == wanted, "vector constructor: wrong number of components");
    put<V, 0>(v, a...);
  }
  return v;
}

// static_cast between vectors converts element by element in MSL; clang would take the bits.
template <class T, class A>
MSL_INLINE T cast(A a) {
  if constexpr (components<T>::count > 1) return make<T>(a);
  else return static_cast<T>(a);
}

template <class T, class F>
MSL_INLINE T as_type(F from) {
  static_assert(sizeof(T) == sizeof(F), "as_type: sizes differ");
  return __builtin_bit_cast(T, from);
}

}  // namespace shim

template <class T>
struct numeric_limits;
template <>
struct numeric_limits<float> {
  static constexpr float max() { return __FLT_MAX__; }
  static constexpr float lowest() { return -__FLT_MAX__; }
  static constexpr float infinity() { return __builtin_inff(); }
};

}  // namespace metal

typedef metal::packed_vec<float, 4> packed_float4;
typedef metal::packed_vec<half, 4> packed_half4;
typedef metal::packed_vec<bfloat, 4> packed_bfloat4;
typedef metal::packed_vec<ushort, 4> packed_ushort4;
typedef metal::packed_vec<uint, 4> packed_uint4;
#define as_type metal::shim::as_type
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
