#pragma once
// Makes backends by name. A backend missing from this build is replaced at link time by a stub that says why.

#include <memory>
#include <string>

#include "backend/backend.h"
#include "kernels/kernels.h"

namespace flash_moe::backend {

struct BackendOptions {
  std::string isa = "auto";  // cpu: a name from kernels::available_kernels
  int thread_count = 0;      // cpu: 0 for one a core
  kernels::Precision precision = kernels::Precision::float32;
  bool kv_is_bf16 = false;
};

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options);
// Throw DeviceError with the reason when the build or the machine has none.
std::unique_ptr<Backend> create_metal_backend(const BackendOptions& options);
std::unique_ptr<Backend> create_cuda_backend(const BackendOptions& options);
// Empty when the backend can be made here, else why not.
std::string metal_unavailable_reason();
std::string cuda_unavailable_reason();

}  // namespace flash_moe::backend
