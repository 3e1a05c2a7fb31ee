#pragma once
// How a memory bound is divided: what the process has already, dense weights, activations, sequences; slots get the rest.
// Pure arithmetic over numbers that engine.cpp collects, so that `plan` gives the same answer without loading.

#include <cstdint>
#include <functional>

#include "flash_moe/config.h"
#include "flash_moe/engine.h"

namespace flash_moe::engine {

struct BudgetInputs {
  uint64_t memory_bytes = 0;     // the bound; never 0 here
  uint64_t process_bytes = 0;    // resident before loading
  uint64_t resident_bytes = 0;   // dense weights
  uint64_t slot_bytes = 0;
  int64_t slots_all = 0;         // experts of the model
  int64_t experts_per_token = 0;
  int64_t slots_wanted = 0;      // EngineOptions::cache_slots; 0: as many as fit
  int64_t prefill_chunk_wanted = 0;
  int64_t context = 0;
  int64_t context_tokens = 0;    // tokens a session is planned for
  std::function<uint64_t(int64_t rows)> step_bytes;
  std::function<uint64_t(int64_t tokens)> sequence_bytes;
};

// The division. Throws ConfigError that names the least bound that works when memory_bytes is below it.
MemoryPlan divide_memory(const BudgetInputs& inputs);

// Slots that fit beside `sequence_bytes` of sequences, capped at plan.slots_all and the number wanted; may be below
// plan.slots_min, which the caller must refuse.
int64_t slots_beside(const MemoryPlan& plan, const BudgetInputs& inputs, uint64_t sequence_bytes);

}  // namespace flash_moe::engine
