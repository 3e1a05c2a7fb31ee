#include "engine/inspect.h"

#include <algorithm>

#include "base/cgroup.h"
#include "flash_moe/error.h"
#include "io/drive_probe.h"

namespace flash_moe {
namespace engine {
namespace {

// Of what the machine can spare, what an engine without a bound takes.
constexpr double kAutoShare = 0.8;
// What the rest of the process grows by while it generates: code touched for the first time, Python's own objects.
constexpr uint64_t kProcessGrowthBytes = uint64_t{4} << 20;
// Fewer dense weights are read in no time worth having back, and their errors come from `open`.
constexpr uint64_t kBackgroundBytes = uint64_t{256} << 20;

kernels::Precision precision_of(const EngineOptions& options) {
  if (options.activations == "float32") return kernels::Precision::float32;
  if (options.activations == "auto") return kernels::Precision::fast;
  throw ConfigError("activations=\"" + options.activations + "\": known are auto and float32");
}

}  // namespace

bool kv_is_bf16(const EngineOptions& options) {
  if (options.kv_dtype == "float32") return false;
  if (options.kv_dtype == "bfloat16") return true;
  if (options.kv_dtype == "auto") return precision_of(options) == kernels::Precision::fast;
  throw ConfigError("kv_dtype=\"" + options.kv_dtype + "\": known are auto, float32 and bfloat16");
}

bool load_in_background(const EngineOptions& options, uint64_t resident_bytes) {
  if (options.load == "auto") return resident_bytes >= kBackgroundBytes;
  if (options.load == "background") return true;
  if (options.load == "whole") return false;
  throw ConfigError("load=\"" + options.load + "\": known are auto, whole and background");
}

model::Prefetch prefetch_option(const EngineOptions& options) {
  if (options.prefetch == "auto") return model::Prefetch::automatic;
  if (options.prefetch == "on") return model::Prefetch::on;
  if (options.prefetch == "off") return model::Prefetch::off;
  throw ConfigError("prefetch=\"" + options.prefetch + "\": known are auto, on and off");
}

std::unique_ptr<backend::Backend> make_backend(const EngineOptions& options) {
  if (options.thread_count < 0)
    throw ConfigError("threads=" + std::to_string(options.thread_count) + ": wanted at least 1, or 0 for all cores");
  backend::BackendOptions made;
  made.isa = options.isa;
  made.thread_count = options.thread_count;
  made.precision = precision_of(options);
  made.kv_is_bf16 = kv_is_bf16(options);
  const std::string& name = options.backend;
  if (name == "metal") return backend::create_metal_backend(made);
  if (name == "cuda") return backend::create_cuda_backend(made);
  if (name == "cpu") return backend::create_cpu_backend(made);
  if (name != "auto") throw ConfigError("backend=\"" + name + "\": known are auto, cpu, metal and cuda");
  // Metal runs where it is asked for by name: its tests have passed on an emulator, never yet on a GPU.
  if (backend::cuda_unavailable_reason().empty()) return backend::create_cuda_backend(made);
  return backend::create_cpu_backend(made);
}

int64_t experts_per_token(const ModelShape& shape, const EngineOptions& options) {
  const int64_t wanted = options.experts_per_token;
  if (wanted == 0) return shape.experts_per_token;
  if (wanted < 0 || wanted > shape.experts)
    throw ConfigError("experts_per_token=" + std::to_string(wanted) + ": the model has " +
                      std::to_string(shape.experts) + " experts and was trained with " +
                      std::to_string(shape.experts_per_token));
  return wanted;
}

ModelInfo model_info(const model::ModelFiles& files, const EngineOptions& options, const std::string& backend_description) {
  const ModelShape& shape = files.shape();
  const model::ModelSummary& summary = files.summary();
  ModelInfo info;
  info.path = summary.path;
  info.architecture = shape.architecture;
  info.format = summary.format;
  info.quantisation = summary.quantisation;
  info.layers = shape.layer_count();
  for (const LayerShape& layer : shape.layers) {
    info.moe_layers += layer.is_moe ? 1 : 0;
    info.full_attention_layers += layer.mixer == MixerKind::full_attention ? 1 : 0;
  }
  info.hidden = shape.hidden;
  info.vocab = shape.vocab;
  info.context = shape.context;
  info.experts = shape.experts;
  info.experts_per_token_trained = shape.experts_per_token;
  info.experts_per_token = experts_per_token(shape, options);
  info.skipped_tensors = summary.vision_tensors;
  info.mtp_tensors = summary.mtp_tensors;
  info.resident_bytes = summary.resident_bytes;
  info.expert_bytes = summary.expert_bytes;
  info.experts_bytes = summary.experts_bytes;
  info.slot_bytes = summary.slot_bytes;
  info.backend = backend_description;
  for (const model::LayerSummary& layer : summary.layers)
    info.layer_info.push_back({layer.full_attention, layer.is_moe, layer.mixer_format, layer.experts_format,
                               layer.expert_bits, layer.resident_bytes, layer.expert_bytes, layer.experts});
  return info;
}

BudgetInputs budget_inputs(const model::ModelFiles& files, const EngineOptions& options, const backend::Backend& backend,
                           uint64_t process_bytes, int64_t context_tokens) {
  for (const auto& [name, value] : {std::pair<const char*, int64_t>{"cache_slots", options.cache_slots},
                                    {"prefill_chunk", options.prefill_chunk},
                                    {"queue_depth", options.queue_depth}}) {
    if (value < 0) throw ConfigError(std::string(name) + "=" + std::to_string(value) + ": wanted 0 (automatic) or more");
  }
  BudgetInputs inputs;
  inputs.process_bytes = process_bytes + kProcessGrowthBytes;
  inputs.resident_bytes = files.summary().resident_bytes;
  inputs.slot_bytes = files.summary().slot_bytes;
  const ModelShape& shape = files.shape();
  inputs.slots_all = shape.experts * std::count_if(shape.layers.begin(), shape.layers.end(),
                                                   [](const LayerShape& layer) { return layer.is_moe; });
  inputs.experts_per_token = experts_per_token(shape, options);
  inputs.slots_wanted = options.cache_slots;
  inputs.prefill_chunk_wanted = options.prefill_chunk;
  inputs.context = shape.context;
  inputs.context_tokens = std::min(context_tokens, shape.context);
  inputs.step_bytes = [&backend](int64_t rows) { return backend.step_bytes(rows); };
  inputs.sequence_bytes = [&backend](int64_t tokens) { return backend.sequence_bytes(tokens); };
  inputs.memory_bytes = options.memory_bytes;
  if (inputs.memory_bytes == 0)
    inputs.memory_bytes =
        inputs.process_bytes + static_cast<uint64_t>(kAutoShare * static_cast<double>(read_memory_state().available_bytes()));
  if (const uint64_t limit = backend.memory_bytes_max(); limit != 0)
    inputs.memory_bytes = std::min(inputs.memory_bytes, inputs.process_bytes + limit);
  return inputs;
}

namespace {

// Whether reads past the page cache are much slower than through it, as on some encrypted or stacked file systems:
// a tenth of a second's reading, worth it for models that take longer than that to read.
bool direct_reads_lose(const model::ModelFiles& files) {
  constexpr uint64_t kBytesMin = uint64_t{1} << 30;
  constexpr double kTimesFaster = 1.5;  // buffered; below it the slots' exact bound decides
  if (files.summary().experts_bytes < kBytesMin) return false;
  const auto& all = files.experts()->files();
  const auto& largest = **std::max_element(
      all.begin(), all.end(), [](const auto& a, const auto& b) { return a->size_bytes() < b->size_bytes(); });
  io::DriveProbeOptions probe{.record_bytes = files.summary().slot_bytes, .bytes_max = uint64_t{64} << 20,
                              .seconds_max = 0.05};
  if (largest.size_bytes() < 4 * probe.bytes_max) return false;
  constexpr int kDepth[] = {8};
  const double direct = io::probe_drive(largest, kDepth, probe).front().bytes_per_second();
  probe.direct = false;
  probe.seed = 2;
  return io::probe_drive(largest, kDepth, probe).front().bytes_per_second() > kTimesFaster * direct;
}

}  // namespace

std::string cache_mode(const EngineOptions& options, const model::ModelFiles& files, const MemoryPlan& plan) {
  if (options.cache == "slots" || options.cache == "both" || options.cache == "os") return options.cache;
  if (options.cache != "auto")
    throw ConfigError("cache=\"" + options.cache + "\": known are auto, slots, both and os");
  if (plan.slots == plan.slots_all) return "slots";
  for (const auto& file : files.experts()->files())
    if (!file->direct_supported()) return "both";
  const uint64_t available = read_memory_state().available_bytes();
  const uint64_t used = plan.memory_bytes > plan.process_bytes ? plan.memory_bytes - plan.process_bytes : 0;
  if (available > used && available - used > files.summary().experts_bytes) return "both";
  return direct_reads_lose(files) ? "both" : "slots";
}

}  // namespace engine

MemoryPlan plan_memory(const std::string& path, const EngineOptions& options, int64_t context_tokens) {
  const auto files = model::ModelFiles::open(path);
  const auto backend = engine::make_backend(options);
  backend->set_shape(files->shape(), engine::experts_per_token(files->shape(), options));
  return engine::divide_memory(
      engine::budget_inputs(*files, options, *backend, process_resident_bytes(), context_tokens));
}

ModelInfo inspect(const std::string& path) {
  return engine::model_info(*model::ModelFiles::open(path), {}, "");
}

}  // namespace flash_moe
