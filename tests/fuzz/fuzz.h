#pragma once
// What every fuzzer here provides: libFuzzer's entry point, and seeds for the driver that stands in for libFuzzer.
// An input is handled when the parser takes it or throws flash_moe::Error; anything else is a defect of ours.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "flash_moe/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

// Valid inputs to start from, and words that mutations put in.
std::vector<std::string> seeds();
std::vector<std::string> words();

// A property that no input may break.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "property broken: %s\n", what);
  std::abort();
}

// Runs `parse` on the input; our own defects are not an answer.
template <typename Parse>
int run(const uint8_t* data, size_t size, const Parse& parse) {
  try {
    parse(std::string_view(reinterpret_cast<const char*>(data), size));
  } catch (const flash_moe::InternalError&) {
    throw;
  } catch (const flash_moe::Error&) {
  }
  return 0;
}

}  // namespace fuzz
