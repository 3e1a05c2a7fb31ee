// What a compiled kernel calls while it runs, and how it announces itself when its image is loaded.
// No standard header: kernels are compiled with -nostdinc.
#pragma once

extern "C" {

struct gpu_dim {
  unsigned x, y, z;
};

// Everything a thread can ask about itself; names are MSL's attributes.
struct gpu_ids {
  gpu_dim thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  gpu_dim threads_per_threadgroup, dispatch_threads_per_threadgroup, threadgroups_per_grid, threads_per_grid;
  unsigned thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  unsigned simdgroups_per_threadgroup, threads_per_simdgroup;
};

struct gpu_bindings {
  void* buffers[31];
  void* threadgroup[31];
};

struct gpu_param_entry {
  const char* attribute;
  const char* name;
};

typedef void (*gpu_entry)(const gpu_bindings*, const gpu_ids*);

void gpu_register_kernel(const char* name, gpu_entry entry, const gpu_param_entry* params, unsigned param_count,
                         unsigned threads_max);
void gpu_register_constant(unsigned index, const char* name, void* storage, unsigned bytes);

unsigned gpu_lane();
// Exchange between lanes: write up to gpu_lane_bytes to the own slot, wait, read lane i at base + i * gpu_lane_bytes.
enum { gpu_lane_bytes = 64 };
char* gpu_lane_slot();
const char* gpu_lane_exchange(const char* file, int line);
void gpu_simdgroup_barrier(int flags, const char* file, int line);
void gpu_threadgroup_barrier(int flags, const char* file, int line);
// Storage of one threadgroup variable, the same for all threads of the threadgroup.
void* gpu_threadgroup_variable(const void* key, unsigned long bytes, unsigned long alignment);
}
