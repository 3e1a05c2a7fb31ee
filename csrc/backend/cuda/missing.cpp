// Linked where the CUDA backend is not: says why.
#include "backend/create.h"
#include "flash_moe/error.h"

namespace flash_moe::backend {

std::string cuda_unavailable_reason() { return "this build of flash_moe has no CUDA backend"; }

std::unique_ptr<Backend> create_cuda_backend(const BackendOptions&) {
  throw DeviceError("backend=\"cuda\": " + cuda_unavailable_reason() + "; use backend=\"cpu\"");
}

}  // namespace flash_moe::backend
