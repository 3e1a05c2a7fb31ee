#pragma once
// What options mean for a model, decided once for opening, planning and inspecting alike.

#include <memory>
#include <string>
#include <vector>

#include "backend/create.h"
#include "engine/memory_budget.h"
#include "flash_moe/config.h"
#include "flash_moe/engine.h"
#include "io/file.h"
#include "model/prefetch_trial.h"
#include "model/weights.h"

namespace flash_moe::engine {

// The backend that `options` name, or the best one here. ConfigError for unknown names, DeviceError with the reason for absent ones.
std::unique_ptr<backend::Backend> make_backend(const EngineOptions& options);
bool kv_is_bf16(const EngineOptions& options);
// Whether dense weights are read behind an open engine's back; ConfigError for unknown names.
bool load_in_background(const EngineOptions& options, uint64_t resident_bytes);
model::Prefetch prefetch_option(const EngineOptions& options);  // ConfigError for unknown names

// The number of experts each token uses: options', checked against what the model was trained with, or that.
int64_t experts_per_token(const ModelShape& shape, const EngineOptions& options);

ModelInfo model_info(const model::ModelFiles& files, const EngineOptions& options, const std::string& backend_description);

// `backend` must have the weights' shape set. memory_bytes 0 in options becomes what the machine can spare.
BudgetInputs budget_inputs(const model::ModelFiles& files, const EngineOptions& options, const backend::Backend& backend,
                           uint64_t process_bytes, int64_t context_tokens);

// How experts are read and kept, "slots", "both" or "os": as options say. Automatic are slots, through the page cache when
// direct reads are refused or much slower, or when the system has room beside the bound for every expert's bytes.
std::string cache_mode(const EngineOptions& options, const model::ModelFiles& files, const MemoryPlan& plan);

}  // namespace flash_moe::engine
