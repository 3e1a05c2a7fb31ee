#pragma once
// What the build embeds of metal/: a metallib where Apple's compiler was found, and always the sources with their includes
// in place. cmake/embed_metal.cmake writes the definitions.

#include <cstddef>

namespace flash_moe::backend {

struct MetalSource {
  const char* file_name;  // "matvec.metal"
  const char* text;
};

extern const MetalSource kMetalSources[];  // ends with an empty entry
extern const unsigned char kMetalLibrary[];
extern const size_t kMetalLibraryBytes;    // 0: none

}  // namespace flash_moe::backend
