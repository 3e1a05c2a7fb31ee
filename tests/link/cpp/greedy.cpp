// A program of another project that links the wheel: greedy MODEL COUNT ID... prints COUNT token ids after those given.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "flash_moe/engine.h"

int main(int argc, char** argv) {
  if (argc < 4) return std::fputs("usage: greedy MODEL COUNT ID...\n", stderr), 2;
  try {
    flash_moe::EngineOptions options;
    options.thread_count = 1;
    const auto engine = flash_moe::Engine::open(argv[1], options);
    const auto session = engine->new_session();
    std::vector<int32_t> ids;
    for (int i = 3; i < argc; ++i) ids.push_back(std::atoi(argv[i]));
    std::vector<float> logits(static_cast<size_t>(engine->info().vocab));
    session->feed(ids, logits.data());
    for (int left = std::atoi(argv[2]); left > 0; --left) {
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      std::printf("%d ", static_cast<int>(best));
      const int32_t id[] = {static_cast<int32_t>(best)};
      flash_moe::Session* const sessions[] = {session.get()};
      engine->decode(sessions, id, logits.data());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
