#include "bindings/bindings.h"

namespace flash_moe::bindings {

void bind_tools(nb::module_&) {}

}  // namespace flash_moe::bindings
