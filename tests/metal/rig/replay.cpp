// Runs dispatches that gpu.py wrote to files; linked with the kernels and the rig into one program under a sanitizer.
// Buffers come from malloc, so that AddressSanitizer knows their ends.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "gpu.h"

namespace {

struct Reader {
  FILE* file;
  void read(void* to, size_t bytes) {
    if (fread(to, 1, bytes, file) != bytes) {
      fprintf(stderr, "the file ends too early\n");
      exit(3);
    }
  }
  template <class T>
  T value() {
    T v;
    read(&v, sizeof v);
    return v;
  }
};

int replay(const char* path) {
  Reader in{fopen(path, "rb")};
  if (in.file == nullptr) {
    fprintf(stderr, "cannot open %s\n", path);
    return 3;
  }
  std::string name(in.value<uint32_t>(), 0);
  in.read(&name[0], name.size());
  gpu_dispatch_args args{};
  args.kernel = gpu_image_find(gpu_image_open(nullptr, nullptr, 0), name.c_str());
  if (args.kernel == nullptr) {
    fprintf(stderr, "no kernel %s\n", name.c_str());
    return 3;
  }
  in.read(&args.grid, sizeof args.grid);
  in.read(&args.threads_per_threadgroup, sizeof args.threads_per_threadgroup);
  args.grid_is_threads = in.value<int>();
  args.order = static_cast<gpu_order>(in.value<uint32_t>());
  gpu_constant constants[GPU_BUFFERS];
  args.constants = constants;
  args.constant_count = in.value<uint32_t>();
  for (uint32_t i = 0; i < args.constant_count; ++i) {
    constants[i].index = in.value<uint32_t>();
    constants[i].bytes = static_cast<uint32_t>(in.value<uint64_t>());
    void* value = malloc(constants[i].bytes);
    in.read(value, constants[i].bytes);
    constants[i].value = value;
  }
  for (uint32_t left = in.value<uint32_t>(); left > 0; --left) {
    const uint32_t index = in.value<uint32_t>();
    args.buffer_bytes[index] = in.value<uint64_t>();
    args.buffers[index] = malloc(args.buffer_bytes[index]);
    in.read(args.buffers[index], args.buffer_bytes[index]);
  }
  fclose(in.file);
  gpu_result result;
  const int failed = gpu_dispatch(&args, &result);
  if (failed) fprintf(stderr, "%s\n", result.error);
  for (void* buffer : args.buffers) free(buffer);
  for (uint32_t i = 0; i < args.constant_count; ++i) free(const_cast<void*>(constants[i].value));
  return failed ? 2 : 0;
}

}  // namespace

// 0: all ran. 2: the rig found a broken rule. 3: a file is wrong. A sanitizer's finding has the sanitizer's own code.
int main(int count, char** paths) {
  for (int i = 1; i < count; ++i) {
    if (const int code = replay(paths[i])) return code;
  }
  return 0;
}
