// How a kernel function becomes an entry of the rig: arguments by attribute, threadgroup variables, function constants.
// The macros are written by rewrite.py.
#pragma once
#pragma clang system_header  // newer C++ than the kernels may use

namespace metal::shim {

constexpr bool equal(const char* a, const char* b) {
  for (; *a == *b; ++a, ++b) {
    if (*a == 0) return true;
  }
  return false;
}
// n of "buffer(n)"
constexpr int index_of(const char* attribute) {
  while (*attribute != '(') ++attribute;
  int n = 0;
  for (++attribute; *attribute >= '0' && *attribute <= '9'; ++attribute) n = n * 10 + (*attribute - '0');
  return n;
}

template <class P>
MSL_INLINE P from_dim(const gpu_dim& d) {
  if constexpr (components<P>::count == 1) {
    return static_cast<P>(d.x);
  } else {
    const unsigned all[3] = {d.x, d.y, d.z};
    P p;
    for (int i = 0; i < components<P>::count; ++i) p[i] = static_cast<typename components<P>::type>(all[i]);
    return p;
  }
}

template <class P>
MSL_INLINE P identifier(const char* attribute, const gpu_ids& ids) {
#define MSL_POSITION(name) \
  if (equal(attribute, #name)) return from_dim<P>(ids.name);
#define MSL_INDEX(name) \
  if (equal(attribute, #name)) return from_dim<P>({ids.name, 0, 0});
  MSL_POSITION(thread_position_in_grid)
  MSL_POSITION(thread_position_in_threadgroup)
  MSL_POSITION(threadgroup_position_in_grid)
  MSL_POSITION(threads_per_threadgroup)
  MSL_POSITION(dispatch_threads_per_threadgroup)
  MSL_POSITION(threadgroups_per_grid)
  MSL_POSITION(threads_per_grid)
  MSL_INDEX(thread_index_in_threadgroup)
  MSL_INDEX(thread_index_in_simdgroup)
  MSL_INDEX(simdgroup_index_in_threadgroup)
  MSL_INDEX(simdgroups_per_threadgroup)
  MSL_INDEX(threads_per_simdgroup)
#undef MSL_POSITION
#undef MSL_INDEX
  __builtin_trap();  // rewrite.py lets no other attribute through
}

template <class P>
struct Argument {
  static MSL_INLINE P get(const char* attribute, const gpu_bindings& bindings, const gpu_ids& ids) {
    if constexpr (__is_pointer(P) || __is_lvalue_reference(P)) {
      const int i = index_of(attribute);
      void* address = attribute[0] == 'b' ? bindings.buffers[i] : bindings.threadgroup[i];
      if constexpr (__is_pointer(P)) {
        return (P)address;  // into its address space: no named cast does that
      } else {
        typedef __remove_reference_t(P) Object;
        return *(Object*)address;
      }
    } else {
      return identifier<P>(attribute, ids);
    }
  }
};

template <int... i>
struct Indices {};
template <int n, int... i>
struct MakeIndices : MakeIndices<n - 1, n - 1, i...> {};
template <int... i>
struct MakeIndices<0, i...> {
  typedef Indices<i...> type;
};

template <class... P, int... i>
MSL_INLINE void call(void (*kernel)(P...), Indices<i...>, const gpu_param_entry* params, const gpu_bindings& bindings,
                     const gpu_ids& ids) {
  kernel(Argument<P>::get(params[i].attribute, bindings, ids)...);
}
template <class... P>
MSL_INLINE void call(void (*kernel)(P...), const gpu_param_entry* params, const gpu_bindings& bindings,
                     const gpu_ids& ids) {
  call(kernel, typename MakeIndices<sizeof...(P)>::type(), params, bindings, ids);
}

}  // namespace metal::shim

// MSL_REGISTER_KERNEL(matvec, 5, 0, {"buffer(0)", "data"}, ...)
#define MSL_REGISTER_KERNEL(name, param_count, threads_max, ...)                                \
  static constexpr gpu_param_entry msl_params_##name[] = {__VA_ARGS__};                         \
  static void msl_entry_##name(const gpu_bindings* bindings, const gpu_ids* ids) {              \
    metal::shim::call(name, msl_params_##name, *bindings, *ids);                                \
  }                                                                                             \
  __attribute__((constructor)) static void msl_register_##name() {                              \
    gpu_register_kernel(#name, msl_entry_##name, msl_params_##name, param_count, threads_max);  \
  }

#define MSL_REGISTER_CONSTANT(index, name)                          \
  __attribute__((constructor)) static void msl_constant_##name() {  \
    gpu_register_constant(index, #name, (void*)&name, sizeof name); \
  }

// threadgroup T name dimensions; inside a kernel. The key is the same for all threads.
#define MSL_THREADGROUP_VARIABLE(type, name, dimensions)                         \
  static const char msl_key_##name = 0;                                          \
  typedef type msl_type_##name dimensions;                                       \
  MSL_THREADGROUP msl_type_##name& name = *(MSL_THREADGROUP msl_type_##name*)gpu_threadgroup_variable( \
      &msl_key_##name, sizeof(msl_type_##name), alignof(msl_type_##name))
