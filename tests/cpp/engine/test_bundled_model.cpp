// The bundled model, through every kernel table of this machine: the same logits, to the bit, as recorded on x86-64. On another
// architecture, emulated or not, that shows that it computes what x86-64 computes.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "flash_moe/engine.h"
#include "format/crc32c.h"
#include "kernels/kernels.h"
#include "test.h"

using namespace flash_moe;

namespace {

constexpr int kSteps = 6;
// "Once upon a time", as tokens of the bundled model.
const std::vector<int32_t> kPrompt = {841, 842, 263, 698};

struct Story {
  std::vector<int32_t> tokens;
  uint32_t checksum = 0;  // of all logits on the way
};

// The recorded ones. After a change of the model, take what a failure prints.
const Story kFloat32 = {{11, 433, 346, 263, 590, 789}, 0xb5f0f270};
const Story kFast = {{11, 433, 346, 263, 590, 789}, 0x473d8746};

Story tell(const EngineOptions& options) {
  const auto engine = Engine::open(FLASH_MOE_SOURCE_DIR "/python/flash_moe/models/demo", options);
  const auto session = engine->new_session();
  std::vector<float> logits(static_cast<size_t>(engine->info().vocab));
  const auto add = [&](Story& story) {
    story.checksum = format::crc32c(story.checksum, logits.data(), logits.size() * sizeof(float));
  };
  Story story;
  session->feed(kPrompt, logits.data());
  add(story);
  for (int step = 0; step < kSteps; ++step) {
    story.tokens.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    const int32_t next[] = {story.tokens.back()};
    Session* const sessions[] = {session.get()};
    engine->decode(sessions, next, logits.data());
    add(story);
  }
  return story;
}

void check_every_table(kernels::Precision precision, const Story& recorded) {
  for (auto table = kernels::available_kernels(precision); *table; ++table) {
    EngineOptions options;
    options.backend = "cpu";
    options.isa = (*table)->name;
    options.activations = precision == kernels::Precision::fast ? "auto" : "float32";
    options.cache_slots = 16;
    const Story told = tell(options);
    const bool same_logits = !(*table)->has_reference_bits || told.checksum == recorded.checksum;
    const bool same = told.tokens == recorded.tokens && same_logits;
    CHECK(same);
    if (same) continue;
    std::printf("  %s: {{", (*table)->name);
    for (const int32_t token : told.tokens) std::printf("%d, ", token);
    std::printf("}, 0x%08x}\n", told.checksum);
  }
}

}  // namespace

TEST(every_table_gives_the_recorded_logits_in_float32) { check_every_table(kernels::Precision::float32, kFloat32); }

TEST(every_table_gives_the_recorded_logits_in_integers) { check_every_table(kernels::Precision::fast, kFast); }
