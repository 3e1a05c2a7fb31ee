// Runs compute kernels on the CPU as a GPU would run them: one fiber a GPU thread, simdgroups of 32, threadgroups one
// after another in an order that the caller chooses. Kernels come as shared objects that compile.py made.
//
// DESIGN. A threadgroup's threads run until they wait in a simdgroup function or a barrier; nothing else switches. So any
// order of threads between two waits is possible on a real GPU too, and three of them are offered: a result that depends
// on the order is a bug of the kernel. What is an error here and silently wrong on a GPU:
//   lanes of a simdgroup that wait at different places, or one that has returned    divergence
//   a threadgroup barrier that some threads do not reach, or two barriers at once   divergence
//   an access beyond a buffer of gpu_allocate (its end lies on an unmapped page)    out of bounds
//   a declared buffer that is not bound, a function constant of another size        refused before the run
//   more than 32 KiB of threadgroup memory, more than 1024 threads                  refused
// Threadgroup memory starts as NaN; function constants without a value as a pattern that no kernel expects. Denormals are flushed. Under ThreadSanitizer each GPU thread is a fiber of its own
// that only barriers with mem_flags synchronise, and threadgroups are unordered: races are its reports. (It remembers
// some 250 threads, so races between threadgroups show in dispatches of few threads only.)
// Calls from several OS threads are allowed; dispatches of one process run one at a time.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { GPU_BUFFERS = 31, GPU_SIMD_WIDTH = 32, GPU_THREADS_MAX = 1024, GPU_THREADGROUP_BYTES_MAX = 32768 };

typedef struct {
  uint32_t x, y, z;
} gpu_size;

// One parameter as the source declares it: attribute "buffer(0)", "threadgroup(0)", "thread_position_in_grid"...
typedef struct {
  const char* attribute;
  const char* name;
} gpu_param;

// A value for [[function_constant(index)]]; `bytes` must be the size of the declared type.
typedef struct {
  uint32_t index;
  uint32_t bytes;
  const void* value;
} gpu_constant;

typedef enum { GPU_FORWARD = 0, GPU_REVERSE = 1, GPU_SHUFFLED = 2 } gpu_order;

typedef struct gpu_image gpu_image;    // a shared object with its kernels
typedef struct gpu_kernel gpu_kernel;  // lives as long as its image

typedef struct {
  const gpu_kernel* kernel;
  gpu_size grid;            // threadgroups, or threads when grid_is_threads
  int grid_is_threads;      // threadgroups at the end of the grid are then smaller
  gpu_size threads_per_threadgroup;
  void* buffers[GPU_BUFFERS];
  uint64_t buffer_bytes[GPU_BUFFERS];  // 0 when unknown; only names the buffer in an out-of-bounds report
  uint32_t threadgroup_bytes[GPU_BUFFERS];
  const gpu_constant* constants;
  uint32_t constant_count;
  gpu_order order;
  uint32_t seed;            // of GPU_SHUFFLED
} gpu_dispatch_args;

typedef struct {
  uint64_t simd_operations;
  uint64_t barriers;
  uint32_t threadgroup_bytes;  // the largest use of threadgroup memory
  char error[512];             // empty when all went well
} gpu_result;

// Null and a message in `error` when the file cannot be loaded or has no kernels.
gpu_image* gpu_image_open(const char* path, char* error, size_t error_bytes);
void gpu_image_close(gpu_image* image);
uint32_t gpu_image_kernel_count(const gpu_image* image);
const gpu_kernel* gpu_image_kernel(const gpu_image* image, uint32_t index);
const gpu_kernel* gpu_image_find(const gpu_image* image, const char* name);  // null when there is none
uint32_t gpu_image_constant_count(const gpu_image* image);
// Index, size and name of a declared function constant.
void gpu_image_constant(const gpu_image* image, uint32_t i, uint32_t* index, uint32_t* bytes, const char** name);

const char* gpu_kernel_name(const gpu_kernel* kernel);
uint32_t gpu_kernel_param_count(const gpu_kernel* kernel);
gpu_param gpu_kernel_param(const gpu_kernel* kernel, uint32_t index);
// [[max_total_threads_per_threadgroup(n)]], or GPU_THREADS_MAX.
uint32_t gpu_kernel_threads_max(const gpu_kernel* kernel);

// 0, or another number and a message in result->error.
int gpu_dispatch(const gpu_dispatch_args* args, gpu_result* result);

// Memory whose last byte (rounded up to 16) lies before an unmapped page; filled with 0xff bytes (NaN). Null: no memory.
void* gpu_allocate(size_t bytes);
void gpu_free(void* memory, size_t bytes);

#ifdef __cplusplus
}
#endif
