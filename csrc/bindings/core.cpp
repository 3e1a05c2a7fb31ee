#include "bindings.h"
#include "flash_moe/version.h"

NB_MODULE(_core, m) {
  m.doc() = "C++ core of flash_moe. Import names from flash_moe, not from here.";
  m.attr("__version__") = flash_moe::version();
  flash_moe::bindings::bind_errors(m);
  flash_moe::bindings::bind_options(m);
  flash_moe::bindings::bind_engine(m);
  flash_moe::bindings::bind_tools(m);
}
