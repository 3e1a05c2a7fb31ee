#include "flash_moe/version.h"

namespace flash_moe {

const char* version() { return FLASH_MOE_VERSION; }

}  // namespace flash_moe
