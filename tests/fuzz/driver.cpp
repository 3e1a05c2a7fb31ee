// Stands in for libFuzzer where there is none: mutates the seeds for a fixed time from a fixed seed.
//   json_fuzz [seconds] [random seed] | json_fuzz FILE
// Status 1 when an input ends in anything but flash_moe::Error; the input is then in ./fuzz_failure.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz.h"

namespace {

constexpr size_t input_bytes_max = 1 << 16;
constexpr double default_seconds = 5;
constexpr int runs_between_clock_reads = 64;

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed), seeds_(fuzz::seeds()), words_(fuzz::words()) {}

  std::string next() {
    std::string text = pick(seeds_);
    for (size_t i = below(6) + 1; i > 0; --i) change(text);
    text.resize(std::min(text.size(), input_bytes_max));
    return text;
  }

 private:
  size_t below(size_t bound) { return bound == 0 ? 0 : static_cast<size_t>(random_() % bound); }
  const std::string& pick(const std::vector<std::string>& from) { return from[below(from.size())]; }

  void change(std::string& text) {
    const size_t at = below(text.size() + 1);
    const size_t count = below(text.size() - at + 1);
    switch (below(8)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        text.insert(at, pick(words_));
        break;
      case 2:
        text.erase(at, below(std::min<size_t>(count, 16) + 1));
        break;
      case 3:
        text.insert(at, text.substr(below(text.size() + 1), below(64)));
        break;
      case 4:
        text.resize(at);
        break;
      case 5:
        if (at < text.size()) text[at] = static_cast<char>(below(256));
        break;
      case 6:
        text.replace(at, std::min<size_t>(count, below(8)), pick(words_));
        break;
      default: {
        const std::string& other = pick(seeds_);
        text = text.substr(0, at) + other.substr(below(other.size() + 1));
      }
    }
  }

  std::mt19937_64 random_;
  std::vector<std::string> seeds_;
  std::vector<std::string> words_;
};

bool survives(const std::string& input) {
  try {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
    return true;
  } catch (const std::exception& error) {
    std::printf("not a flash_moe::Error: %s\n", error.what());
  } catch (...) {
    std::printf("not a flash_moe::Error, nor an exception of the standard library\n");
  }
  std::ofstream("fuzz_failure", std::ios::binary) << input;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  char* end = nullptr;
  const double seconds = argc > 1 ? std::strtod(argv[1], &end) : default_seconds;
  if (end && *end != '\0') {
    std::ifstream file(argv[1], std::ios::binary);
    return survives({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}) ? 0 : 1;
  }
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  for (const std::string& input : fuzz::seeds()) {
    if (!survives(input)) return 1;
  }
  Mutator mutator(seed);
  const auto begin = std::chrono::steady_clock::now();
  uint64_t runs = 0;
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  while (runs % runs_between_clock_reads != 0 || elapsed() < seconds) {
    if (!survives(mutator.next())) {
      std::printf("after %llu runs with seed %llu\n", static_cast<unsigned long long>(runs),
                  static_cast<unsigned long long>(seed));
      return 1;
    }
    ++runs;
  }
  std::printf("%llu runs in %.1f s with seed %llu\n", static_cast<unsigned long long>(runs), elapsed(),
              static_cast<unsigned long long>(seed));
  return 0;
}
