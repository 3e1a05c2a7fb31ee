#pragma once
// CRC-32C (Castagnoli, reflected 0x82f63b78): the checksum of packs.

#include <cstddef>
#include <cstdint>

namespace flash_moe::format {

// Continues from `crc`, the value of the bytes before (0 at the start). crc32c("123456789") is 0xe3069283.
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes);

}  // namespace flash_moe::format
