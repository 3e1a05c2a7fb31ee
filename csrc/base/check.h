#pragma once
// FM_CHECK: what can only fail through our own mistake. Wrong input is never checked with it.

#include <string>

#include "flash_moe/error.h"

namespace flash_moe {

[[noreturn]] inline void check_failed(const char* what, const char* file, int line) {
  throw InternalError(std::string(file) + ":" + std::to_string(line) + ": " + what +
                      " does not hold; this is a defect of flash_moe, please report it");
}

}  // namespace flash_moe

#define FM_CHECK(condition)                                                  \
  do {                                                                       \
    if (!(condition)) ::flash_moe::check_failed(#condition, __FILE__, __LINE__); \
  } while (0)
