#include "bindings.h"

namespace flash_moe::bindings {

void bind_errors(nb::module_& m) {
  const auto error = nb::exception<Error>(m, "Error");
  error.attr("__doc__") = "Base of every error flash_moe raises on purpose.";
  // Translators are tried newest first, so that a derived error is not taken for its base.
  nb::exception<ConfigError>(m, "ConfigError", error.ptr()).attr("__doc__") =
      "The caller asked for something that cannot be: an option, a budget, a prompt.";
  nb::exception<FormatError>(m, "FormatError", error.ptr()).attr("__doc__") =
      "A file is not what it should be; the message names the file, the field and what was expected.";
  nb::exception<IoError>(m, "IoError", error.ptr()).attr("__doc__") =
      "A file could not be opened, or a read did not give every byte asked for.";
  nb::exception<DeviceError>(m, "DeviceError", error.ptr()).attr("__doc__") =
      "A GPU failed, or the backend asked for is not in this build or machine.";
  nb::exception<CancelledError>(m, "CancelledError", error.ptr()).attr("__doc__") =
      "The call was stopped by its owner; nothing was changed.";
  nb::exception<InternalError>(m, "InternalError", error.ptr()).attr("__doc__") =
      "A defect in flash_moe itself: please report it.";
}

}  // namespace flash_moe::bindings
