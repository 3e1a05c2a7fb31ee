// Executes one threadgroup: a fiber a thread, lanes of a simdgroup meeting in simdgroup functions, all threads in
// barriers. Owns the threads' stacks and the threadgroup memory, which it reuses for the next threadgroup.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fibers.h"
#include "gpu.h"
#include "kernel_abi.h"

namespace rig {

// Memory whose end lies on an unmapped page.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  char* data() const { return data_; }
  // The two halves, for memory whose owner speaks C.
  static char* allocate(size_t bytes);  // throws std::bad_alloc; filled with 0xff
  static void release(char* data, size_t bytes);

 private:
  size_t bytes_;
  char* data_;
};

// Puts ascending items into the order that the caller of a dispatch chose. The same seed gives the same order.
template <class T>
void arrange(T* items, size_t count, gpu_order order, uint32_t seed) {
  uint32_t random = seed * 2654435761u + 12345u;
  for (size_t i = 0; order != GPU_FORWARD && i < count; ++i) {
    random = random * 1664525u + 1013904223u;
    const size_t j = order == GPU_REVERSE ? count - 1 - i : i + (random >> 8) % (count - i);
    if (j <= i) continue;
    const T item = items[j];
    items[j] = items[i];
    items[i] = item;
  }
}

struct ThreadgroupPlace {
  gpu_dim position;   // in the grid, in threadgroups
  gpu_dim threads;    // of this threadgroup: fewer at the grid's end when the grid counts threads
  gpu_dim full_size;  // of the other threadgroups
  gpu_dim grid_threadgroups, grid_threads;
};

class Threadgroup {
 public:
  // `thread_count`: of a full threadgroup; none that is run has more.
  Threadgroup(gpu_entry entry, const gpu_bindings& bindings, const uint32_t* threadgroup_bytes, uint32_t thread_count,
              gpu_order order, uint32_t seed);
  ~Threadgroup();

  // False when the kernel broke a rule; error() says which. Nothing may be run afterwards.
  bool run(const ThreadgroupPlace& place);
  const std::string& error() const { return error_; }
  // "threadgroup 0,1,0 simdgroup 2 lane 7": the thread that runs now.
  std::string current_thread() const;
  const gpu_result& totals() const { return totals_; }

  // The threadgroup that runs on this OS thread, or null.
  static Threadgroup* current();

  // Called by kernels, through kernel_abi.h.
  unsigned lane() const { return running_->lane; }
  char* lane_slot() { return running_->group->slots[running_->lane]; }
  const char* exchange(const char* file, int line);
  void simdgroup_barrier(int flags, const char* file, int line);
  void threadgroup_barrier(int flags, const char* file, int line);
  void* variable(const void* key, size_t bytes, size_t alignment);

 private:
  enum class State : uint8_t { ready, in_simd, in_barrier, done };
  struct Simdgroup;
  struct Thread {
    Fiber fiber;
    Simdgroup* group;
    State state;
    uint8_t lane;
    const char* file;  // where it waits
    int line;
    gpu_ids ids;
  };
  struct Simdgroup {
    alignas(64) char slots[GPU_SIMD_WIDTH][gpu_lane_bytes];     // what the lanes write
    alignas(64) char results[GPU_SIMD_WIDTH][gpu_lane_bytes];   // what they read after the meeting
    Thread* threads;
    int count;
    int ready_count;
    char order_tag;
  };
  struct Variable {
    const void* key;
    void* memory;
  };

  static void thread_body();
  [[noreturn]] void finish_thread(Thread& thread);
  void lay_out_memory();
  void prepare(const ThreadgroupPlace& place);
  void fill_ids(Thread& thread, int index, const ThreadgroupPlace& place) const;
  void choose_order(const ThreadgroupPlace& place);
  void run_ready_threads(Simdgroup& group);
  bool complete_simd_operation(Simdgroup& group);
  bool complete_barrier();
  void wait(State state, const char* file, int line);
  void fail(const std::string& what, const Thread& thread);
  void renew_memory();

  gpu_entry entry_;
  gpu_bindings bindings_;
  const uint32_t* threadgroup_bytes_;
  gpu_order order_;
  uint32_t seed_;
  std::vector<std::unique_ptr<Stack>> stacks_;
  std::unique_ptr<GuardedMemory> memory_;
  size_t memory_used_ = 0;
  std::vector<Variable> variables_;
  // Sized once: ThreadSanitizer would take the vectors' own memset for a race with a threadgroup before.
  std::vector<Thread> threads_;
  std::vector<Simdgroup> groups_;
  size_t thread_count_ = 0;  // of the threadgroup at hand
  size_t group_count_ = 0;
  std::vector<int> group_order_;
  int lane_order_[GPU_SIMD_WIDTH];
  Thread* running_ = nullptr;
  int alive_count_ = 0;
  int waiting_count_ = 0;  // in the threadgroup barrier
  char barrier_tag_ = 0;
  char end_tag_ = 0;
  std::string error_;
  gpu_result totals_{};
};

}  // namespace rig
