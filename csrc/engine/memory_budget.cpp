#include "engine/memory_budget.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "flash_moe/error.h"

namespace flash_moe::engine {
namespace {

constexpr int64_t kChunkMin = 16;
constexpr int64_t kChunkMax = 4096;
// Where everything stays in memory a wider step reads nothing less; this is enough rows for each expert's product.
constexpr int64_t kChunkResident = 512;
// Activations of a prefill step may take this share of what is left beside the dense weights.
constexpr uint64_t kStepShare = 10;
// A session that is not planned for a context is given room for this many tokens at first.
constexpr int64_t kContextFirst = 1024;

std::string human(uint64_t bytes) {
  char text[32];
  const auto count = static_cast<double>(bytes);
  if (bytes < 999'500'000) {
    std::snprintf(text, sizeof text, "%.3g MB", count / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%.2f GB", count / 1e9);
  }
  return text;
}

uint64_t fixed_bytes(const BudgetInputs& inputs) { return inputs.process_bytes + inputs.resident_bytes; }

int64_t choose_chunk(const BudgetInputs& inputs, uint64_t sequence_bytes) {
  if (inputs.prefill_chunk_wanted > 0) return std::min(inputs.prefill_chunk_wanted, std::max<int64_t>(inputs.context, 1));
  const uint64_t used = fixed_bytes(inputs) + sequence_bytes;
  const uint64_t left = inputs.memory_bytes > used ? inputs.memory_bytes - used : 0;
  const uint64_t all_slots = static_cast<uint64_t>(inputs.slots_all) * inputs.slot_bytes;
  if (left >= all_slots + inputs.step_bytes(kChunkResident)) return kChunkResident;
  int64_t chunk = kChunkMax;
  while (chunk > kChunkMin && inputs.step_bytes(chunk) > left / kStepShare) chunk /= 2;
  return chunk;
}

}  // namespace

MemoryPlan divide_memory(const BudgetInputs& inputs) {
  MemoryPlan plan;
  plan.memory_bytes = inputs.memory_bytes;
  plan.process_bytes = inputs.process_bytes;
  plan.resident_bytes = inputs.resident_bytes;
  plan.slots_all = inputs.slots_all;
  plan.slots_min = std::min(inputs.experts_per_token, inputs.slots_all);
  plan.context_tokens = inputs.context_tokens > 0 ? inputs.context_tokens : std::min(inputs.context, kContextFirst);
  plan.sequence_bytes = inputs.sequence_bytes(plan.context_tokens);
  plan.prefill_chunk = choose_chunk(inputs, plan.sequence_bytes);
  plan.step_bytes = inputs.step_bytes(plan.prefill_chunk);

  const int64_t chunk_min = inputs.prefill_chunk_wanted > 0 ? plan.prefill_chunk : kChunkMin;
  const int64_t slots_least = std::max(plan.slots_min, std::min(inputs.slots_wanted, plan.slots_all));
  plan.memory_bytes_min = fixed_bytes(inputs) + plan.sequence_bytes + inputs.step_bytes(chunk_min) +
                          static_cast<uint64_t>(slots_least) * inputs.slot_bytes;
  if (inputs.memory_bytes < plan.memory_bytes_min) {
    throw ConfigError("memory=" + human(inputs.memory_bytes) + " is too small for this model; the least that works is " +
                      human(plan.memory_bytes_min + 10'000'000) + " (" + human(inputs.process_bytes) + " process, " +
                      human(inputs.resident_bytes) + " dense weights, " + human(plan.sequence_bytes) +
                      " for a session of " + std::to_string(plan.context_tokens) + " tokens, " +
                      std::to_string(slots_least) + " experts of " + human(inputs.slot_bytes) + ")");
  }
  plan.slots = slots_beside(plan, inputs, plan.sequence_bytes);
  while (plan.slots < slots_least && plan.prefill_chunk > chunk_min) {
    plan.prefill_chunk /= 2;
    plan.step_bytes = inputs.step_bytes(plan.prefill_chunk);
    plan.slots = slots_beside(plan, inputs, plan.sequence_bytes);
  }
  plan.slots_bytes = static_cast<uint64_t>(plan.slots) * inputs.slot_bytes;
  return plan;
}

int64_t slots_beside(const MemoryPlan& plan, const BudgetInputs& inputs, uint64_t sequence_bytes) {
  if (inputs.slot_bytes == 0) return 0;
  const uint64_t used = fixed_bytes(inputs) + plan.step_bytes + sequence_bytes;
  const uint64_t left = plan.memory_bytes > used ? plan.memory_bytes - used : 0;
  auto slots = std::min(static_cast<int64_t>(left / inputs.slot_bytes), plan.slots_all);
  if (inputs.slots_wanted > 0) slots = std::min(slots, std::max(inputs.slots_wanted, plan.slots_min));
  return slots;
}

}  // namespace flash_moe::engine
