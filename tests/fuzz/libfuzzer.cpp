// Gives libFuzzer the seeds and words of a fuzzer, beside its own mutations.

#include <algorithm>
#include <cstring>
#include <random>

#include "fuzz.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  static const std::vector<std::string> all_seeds = fuzz::seeds();
  static const std::vector<std::string> all_words = fuzz::words();
  std::minstd_rand random(seed);
  const auto below = [&](size_t bound) { return random() % bound; };
  const size_t kind = below(16);
  if (kind == 0) {
    const std::string& text = all_seeds[below(all_seeds.size())];
    size = std::min(text.size(), max_size);
    std::memcpy(data, text.data(), size);
  } else if (kind < 6) {
    const std::string& word = all_words[below(all_words.size())];
    if (word.size() > max_size - size) return LLVMFuzzerMutate(data, size, max_size);
    const size_t at = below(size + 1);
    std::memmove(data + at + word.size(), data + at, size - at);
    std::memcpy(data + at, word.data(), word.size());
    return size + word.size();
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
