// Images, their kernels, and dispatches: checks what Metal would check, then runs the grid's threadgroups in order.
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "gpu.h"
#include "threadgroup.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

struct gpu_kernel {
  std::string name;
  gpu_entry entry;
  const gpu_param_entry* params;
  uint32_t param_count;
  uint32_t threads_max;
  struct gpu_image* image;
};

struct gpu_image {
  struct Constant {
    uint32_t index;
    std::string name;
    void* storage;
    uint32_t bytes;
  };
  void* handle = nullptr;
  std::vector<std::unique_ptr<gpu_kernel>> kernels;
  std::vector<Constant> constants;
};

namespace {

std::mutex dispatch_mutex;
std::mutex open_mutex;

// Kernels linked into the program itself register before main; they belong to this image.
gpu_image& linked_image() {
  static gpu_image image;
  return image;
}
gpu_image* image_being_opened = nullptr;
gpu_image& registering_image() { return image_being_opened ? *image_being_opened : linked_image(); }

// --- faults: an access that hits an unmapped page ends the dispatch with a message instead of the process ---

sigjmp_buf fault_return;
volatile sig_atomic_t fault_armed = 0;
void* volatile fault_address = nullptr;
struct sigaction old_segv, old_bus;

void on_fault(int signal_number, siginfo_t* info, void*) {
  if (!fault_armed) {
    sigaction(signal_number, signal_number == SIGSEGV ? &old_segv : &old_bus, nullptr);
    return;  // the access is repeated, and meets the handler that was there before
  }
  fault_armed = 0;
  fault_address = info->si_addr;
  siglongjmp(fault_return, 1);
}

// Installed for the time of a dispatch. Not under a sanitizer: its own report says more.
class FaultHandler {
 public:
  FaultHandler() {
    if (rig::under_thread_sanitizer() || rig::under_address_sanitizer()) return;
    static char memory[64 << 10];
    stack_t stack{};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    installed_ = true;
  }
  ~FaultHandler() {
    if (!installed_) return;
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  bool installed_ = false;
  stack_t old_stack_{};
};

// GPUs flush denormals; so does the CPU for the time of a dispatch.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// --- checks before a run ---

const char* param_attribute(const gpu_kernel& kernel, uint32_t i) { return kernel.params[i].attribute; }

std::string check_bindings(const gpu_dispatch_args& args) {
  const gpu_kernel& kernel = *args.kernel;
  for (uint32_t i = 0; i < kernel.param_count; ++i) {
    unsigned index = 0;
    const bool is_buffer = sscanf(param_attribute(kernel, i), "buffer(%u)", &index) == 1;
    if (is_buffer && args.buffers[index] == nullptr) {
      return "buffer(" + std::to_string(index) + ") '" + kernel.params[i].name + "' is not bound";
    }
    const bool is_memory = sscanf(param_attribute(kernel, i), "threadgroup(%u)", &index) == 1;
    if (is_memory && args.threadgroup_bytes[index] == 0) {
      return "threadgroup(" + std::to_string(index) + ") '" + kernel.params[i].name + "' has no memory";
    }
  }
  return "";
}

std::string check_sizes(const gpu_dispatch_args& args) {
  const gpu_size& threads = args.threads_per_threadgroup;
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > args.kernel->threads_max) {
    return std::to_string(count) + " threads in a threadgroup; the kernel takes 1 to " +
           std::to_string(args.kernel->threads_max);
  }
  if (args.grid.x == 0 || args.grid.y == 0 || args.grid.z == 0) return "the grid is empty";
  uint64_t memory = 0;
  for (const uint32_t bytes : args.threadgroup_bytes) memory += (uint64_t{bytes} + 15) / 16 * 16;
  if (memory > GPU_THREADGROUP_BYTES_MAX) return std::to_string(memory) + " bytes of threadgroup memory; 32768 is the limit";
  return "";
}

// Metal asks for the constants that a function uses; here every constant that the caller does not give gets a poison
// pattern, so that its use shows in the result. One of another size than declared is an error.
std::string set_constants(const gpu_dispatch_args& args) {
  for (const gpu_image::Constant& constant : args.kernel->image->constants) {
    memset(constant.storage, constant.bytes == 1 ? 0 : 0xee, constant.bytes);
    for (uint32_t i = 0; i < args.constant_count; ++i) {
      const gpu_constant& given = args.constants[i];
      if (given.index != constant.index) continue;
      if (given.bytes != constant.bytes) {
        return "function constant " + std::to_string(given.index) + " '" + constant.name + "' has " +
               std::to_string(constant.bytes) + " bytes, " + std::to_string(given.bytes) + " were given";
      }
      memcpy(constant.storage, given.value, given.bytes);
    }
  }
  return "";
}

std::string describe_fault(const gpu_dispatch_args& args, const rig::Threadgroup& group) {
  const auto address = reinterpret_cast<uintptr_t>(fault_address);
  char text[96];
  snprintf(text, sizeof text, "access out of bounds at 0x%zx", address);
  std::string message = text;
  for (uint32_t i = 0; i < args.kernel->param_count; ++i) {
    unsigned index = 0;
    if (sscanf(param_attribute(*args.kernel, i), "buffer(%u)", &index) != 1) continue;
    const auto begin = reinterpret_cast<uintptr_t>(args.buffers[index]);
    const uintptr_t end = begin + args.buffer_bytes[index];
    if (args.buffer_bytes[index] == 0 || address + 65536 < begin || address >= end + 65536) continue;
    message += ", near buffer(" + std::to_string(index) + ") '" + args.kernel->params[i].name + "' (" +
               std::to_string(static_cast<int64_t>(address - begin)) + " of " + std::to_string(args.buffer_bytes[index]) +
               " bytes)";
  }
  return message + " [" + group.current_thread() + "]";
}

// --- the run ---

uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

rig::ThreadgroupPlace place_of(uint64_t index, const gpu_dispatch_args& args) {
  const gpu_size& grid = args.grid;
  const gpu_size& full = args.threads_per_threadgroup;
  rig::ThreadgroupPlace place;
  place.full_size = place.threads = {full.x, full.y, full.z};
  place.grid_threadgroups = {grid.x, grid.y, grid.z};
  place.grid_threads = {grid.x * full.x, grid.y * full.y, grid.z * full.z};
  if (args.grid_is_threads) {
    place.grid_threads = {grid.x, grid.y, grid.z};
    place.grid_threadgroups = {divide_up(grid.x, full.x), divide_up(grid.y, full.y), divide_up(grid.z, full.z)};
  }
  const gpu_dim& groups = place.grid_threadgroups;
  place.position = {static_cast<unsigned>(index % groups.x), static_cast<unsigned>(index / groups.x % groups.y),
                    static_cast<unsigned>(index / (uint64_t{groups.x} * groups.y))};
  if (args.grid_is_threads) {
    place.threads = {smaller(full.x, grid.x - place.position.x * full.x), smaller(full.y, grid.y - place.position.y * full.y),
                     smaller(full.z, grid.z - place.position.z * full.z)};
  }
  return place;
}

std::string run_grid(const gpu_dispatch_args& args, gpu_result* result) {
  gpu_bindings bindings{};
  memcpy(bindings.buffers, args.buffers, sizeof bindings.buffers);
  const gpu_dim groups = place_of(0, args).grid_threadgroups;
  const uint64_t count = uint64_t{groups.x} * groups.y * groups.z;
  const gpu_size& full = args.threads_per_threadgroup;
  rig::Threadgroup threadgroup(args.kernel->entry, bindings, args.threadgroup_bytes, full.x * full.y * full.z,
                               args.order, args.seed);
  const FlushDenormals flush;
  const FaultHandler handler;
  std::string error;
  std::vector<uint64_t> order(count);
  for (uint64_t i = 0; i < count; ++i) order[i] = i;
  rig::arrange(order.data(), order.size(), args.order, args.seed);
  // What a fault interrupts belongs to the kernel's stack, or to `threadgroup`, which is only read afterwards.
  if (sigsetjmp(fault_return, 1) == 0) {
    fault_armed = 1;
    for (const uint64_t index : order) {
      if (!threadgroup.run(place_of(index, args))) break;
    }
    fault_armed = 0;
    error = threadgroup.error();
  } else {
    error = describe_fault(args, threadgroup);
  }
  *result = threadgroup.totals();
  return error;
}

int finish(gpu_result* result, const std::string& kernel, const std::string& error) {
  if (error.empty()) return 0;
  snprintf(result->error, sizeof result->error, "kernel %s: %s", kernel.c_str(), error.c_str());
  return 1;
}

}  // namespace

extern "C" {

void gpu_register_kernel(const char* name, gpu_entry entry, const gpu_param_entry* params, unsigned param_count,
                         unsigned threads_max) {
  gpu_image& image = registering_image();
  image.kernels.push_back(std::make_unique<gpu_kernel>(
      gpu_kernel{name, entry, params, param_count, threads_max ? threads_max : GPU_THREADS_MAX, &image}));
}

void gpu_register_constant(unsigned index, const char* name, void* storage, unsigned bytes) {
  registering_image().constants.push_back({index, name, storage, bytes});
}

gpu_image* gpu_image_open(const char* path, char* error, size_t error_bytes) {
  if (path == nullptr) return &linked_image();
  const std::lock_guard<std::mutex> lock(open_mutex);
  auto image = std::make_unique<gpu_image>();
  image_being_opened = image.get();
  image->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  image_being_opened = nullptr;
  if (image->handle == nullptr || image->kernels.empty()) {
    const char* reason = image->handle ? "no kernels in it, or already open" : dlerror();
    snprintf(error, error_bytes, "open %s: %s", path, reason);
    if (image->handle) dlclose(image->handle);
    return nullptr;
  }
  return image.release();
}

void gpu_image_close(gpu_image* image) {
  if (image == nullptr || image == &linked_image()) return;
  if (image->handle) dlclose(image->handle);
  delete image;
}

uint32_t gpu_image_kernel_count(const gpu_image* image) { return static_cast<uint32_t>(image->kernels.size()); }
const gpu_kernel* gpu_image_kernel(const gpu_image* image, uint32_t index) { return image->kernels[index].get(); }

const gpu_kernel* gpu_image_find(const gpu_image* image, const char* name) {
  for (const auto& kernel : image->kernels) {
    if (kernel->name == name) return kernel.get();
  }
  return nullptr;
}

uint32_t gpu_image_constant_count(const gpu_image* image) { return static_cast<uint32_t>(image->constants.size()); }

void gpu_image_constant(const gpu_image* image, uint32_t i, uint32_t* index, uint32_t* bytes, const char** name) {
  const gpu_image::Constant& constant = image->constants[i];
  *index = constant.index;
  *bytes = constant.bytes;
  *name = constant.name.c_str();
}

const char* gpu_kernel_name(const gpu_kernel* kernel) { return kernel->name.c_str(); }
uint32_t gpu_kernel_param_count(const gpu_kernel* kernel) { return kernel->param_count; }
gpu_param gpu_kernel_param(const gpu_kernel* kernel, uint32_t index) {
  return {kernel->params[index].attribute, kernel->params[index].name};
}
uint32_t gpu_kernel_threads_max(const gpu_kernel* kernel) { return kernel->threads_max; }

int gpu_dispatch(const gpu_dispatch_args* args, gpu_result* result) {
  *result = {};
  const std::lock_guard<std::mutex> lock(dispatch_mutex);
  std::string error = check_bindings(*args);
  if (error.empty()) error = check_sizes(*args);
  if (error.empty()) error = set_constants(*args);
  if (error.empty()) error = run_grid(*args, result);
  return finish(result, args->kernel->name, error);
}

void* gpu_allocate(size_t bytes) {
  try {
    return rig::GuardedMemory::allocate(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void gpu_free(void* memory, size_t bytes) { rig::GuardedMemory::release(static_cast<char*>(memory), bytes); }

}  // extern "C"
