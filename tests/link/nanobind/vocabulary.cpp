// A Python extension of another project that links the same library as flash_moe itself.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "flash_moe/engine.h"

NB_MODULE(vocabulary, module) {
  module.def("vocabulary", [](const std::string& path) { return flash_moe::inspect(path).vocab; });
  module.def("error_of", [](const std::string& path) -> std::string {
    try {
      flash_moe::inspect(path);
    } catch (const flash_moe::Error& error) {  // the type must be one across the two libraries
      return error.what();
    }
    return "";
  });
}
