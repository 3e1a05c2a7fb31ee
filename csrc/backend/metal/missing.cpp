// Linked where the Metal backend is not: says why.
#include "backend/create.h"
#include "flash_moe/error.h"

namespace flash_moe::backend {

std::string metal_unavailable_reason() {
#if defined(__APPLE__)
  return "this build of flash_moe has no Metal backend";
#else
  return "Metal exists on Apple systems only";
#endif
}

std::unique_ptr<Backend> create_metal_backend(const BackendOptions&) {
  throw DeviceError("backend=\"metal\": " + metal_unavailable_reason() + "; use backend=\"cpu\"");
}

}  // namespace flash_moe::backend
