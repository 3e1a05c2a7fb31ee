#pragma once
#include "flash_moe/export.h"

namespace flash_moe {

// "0.1.0": the version that libflash_moe was built as.
FLASH_MOE_API const char* version();

}  // namespace flash_moe
