#pragma once
// Every error that libflash_moe throws on purpose. Python sees the same names in flash_moe.

#include <stdexcept>
#include <string>

#include "flash_moe/export.h"

namespace flash_moe {

// Base of every error the library throws on purpose.
class FLASH_MOE_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller asked for something that cannot be: an option, a shape, a budget, a prompt.
class FLASH_MOE_API ConfigError : public Error {
 public:
  using Error::Error;
};

// A file is not what it should be; the message names the file, the field, and what was expected.
class FLASH_MOE_API FormatError : public Error {
 public:
  using Error::Error;
};

// A read, write or open failed; the message names the path, offset, bytes wanted, bytes got, reason.
class FLASH_MOE_API IoError : public Error {
 public:
  using Error::Error;
};

// A GPU or its driver failed, or the backend asked for is not in this build or machine.
class FLASH_MOE_API DeviceError : public Error {
 public:
  using Error::Error;
};

// The call was stopped by its owner (Ctrl-C, cancel); nothing was changed.
class FLASH_MOE_API CancelledError : public Error {
 public:
  using Error::Error;
};

// A defect in flash_moe itself: please report it.
class FLASH_MOE_API InternalError : public Error {
 public:
  using Error::Error;
};

}  // namespace flash_moe
