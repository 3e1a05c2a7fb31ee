#pragma once
// The C++ API: an Engine is a loaded model, a Session is one timeline of tokens.
//
//   auto engine = flash_moe::Engine::open("models/Qwen3.5-35B-A3B-4bit", {});
//   auto session = engine->new_session();
//   std::vector<float> logits(engine->info().vocab);
//   session->feed(prompt_ids, logits.data());
//
// Thread-safe: engines may be used from many threads; a session from one at a time. Steps of different sessions run
// one after another, or as one batch through Engine::decode.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flash_moe/config.h"
#include "flash_moe/error.h"
#include "flash_moe/export.h"
#include "flash_moe/stats.h"

namespace flash_moe {

struct LayerInfo {
  bool full_attention = false;
  bool is_moe = false;
  std::string mixer_format;    // of its projections: "bf16", or "affine 8-bit g64, affine 4-bit g64"
  std::string experts_format;  // empty for a dense layer
  double expert_bits = 0;      // a weight of its experts, scales and biases included
  uint64_t resident_bytes = 0;
  uint64_t expert_bytes = 0;  // of one expert
  int64_t experts = 0;
};

// What the folder holds and how it runs.
struct ModelInfo {
  std::string path;
  std::string architecture;
  std::string format;       // "safetensors", "mlx" or "pack"
  std::string quantisation;  // of the experts: "bf16", "affine 4-bit g64", ...
  int64_t layers = 0;
  int64_t moe_layers = 0;
  int64_t full_attention_layers = 0;
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t context = 0;
  int64_t experts = 0;
  int64_t experts_per_token_trained = 0;
  int64_t experts_per_token = 0;
  int64_t skipped_tensors = 0;  // of a vision tower
  int64_t mtp_tensors = 0;      // of a multi-token-prediction head
  uint64_t resident_bytes = 0;  // dense weights
  uint64_t expert_bytes = 0;    // of one expert, the largest
  uint64_t experts_bytes = 0;   // of all
  uint64_t slot_bytes = 0;
  std::vector<LayerInfo> layer_info;
  std::string backend;          // description, e.g. "cpu: avx512vnni, 2 threads"
};

// Bytes of everything that counts towards memory=; `plan` computes it from headers alone.
struct MemoryPlan {
  uint64_t memory_bytes = 0;    // the bound
  uint64_t process_bytes = 0;   // interpreter, libraries, tokenizer: resident before loading
  uint64_t resident_bytes = 0;  // dense weights
  uint64_t step_bytes = 0;      // activations of the largest step
  uint64_t sequence_bytes = 0;  // one session at `context_tokens`
  uint64_t slots_bytes = 0;
  int64_t slots = 0;
  int64_t slots_all = 0;        // as many as the model has experts
  int64_t slots_min = 0;        // the least that works
  uint64_t memory_bytes_min = 0;
  int64_t prefill_chunk = 0;
  int64_t context_tokens = 0;
};

// Called between layers and chunks; returns true to stop, which throws CancelledError and leaves the session as it was
// before the call. `done` of `total` tokens of this call have passed the model.
using Progress = std::function<bool(int64_t done, int64_t total)>;

class Session;

class FLASH_MOE_API Engine : public std::enable_shared_from_this<Engine> {
 public:
  // Opens a model folder: reads headers, dense weights, and sizes the cache. Throws FormatError, ConfigError, IoError,
  // DeviceError. `progress` counts bytes of dense weights. Of a model whose weights are read in the background (EngineOptions::load)
  // it hears nothing: a step waits for each layer's, and throws the IoError or FormatError of a read that failed; the next
  // step reads that again.
  static std::shared_ptr<Engine> open(const std::string& path, const EngineOptions& options,
                                      const Progress& progress = nullptr);
  virtual ~Engine() = default;

  virtual const ModelInfo& info() const = 0;
  virtual MemoryPlan memory_plan() const = 0;
  virtual std::unique_ptr<Session> new_session() = 0;
  // A session saved by Session::save; FormatError when it belongs to another model or is damaged.
  virtual std::unique_ptr<Session> load_session(const std::string& path) = 0;

  // One token for each of several sessions of this engine, as one step. logits [sessions, vocab] f32.
  virtual void decode(std::span<Session* const> sessions, std::span<const int32_t> tokens, float* logits,
                      const Progress& progress = nullptr) = 0;

  // Changes the memory bound while the engine runs; returns once the process is within it. ConfigError names the least
  // that works, and then nothing has changed.
  virtual void set_memory(uint64_t memory_bytes) = 0;
  // Forgets all cached experts (for measurements from cold).
  virtual void drop_cache() = 0;

  virtual Stats stats() const = 0;
  virtual void reset_stats() = 0;
  // Trace events since `trace(true)`, as Chrome/Perfetto JSON.
  virtual void trace(bool on) = 0;
  virtual std::string take_trace_json() = 0;
  // Experts asked for since `record_routes(true)`.
  virtual void record_routes(bool on) = 0;
  virtual RouteTrace take_routes() = 0;
};

class FLASH_MOE_API Session {
 public:
  virtual ~Session() = default;
  virtual int64_t position() const = 0;          // tokens fed
  virtual std::span<const int32_t> tokens() const = 0;
  virtual uint64_t bytes() const = 0;
  // Feeds a prompt, or a part of one (at least one token); sampled tokens go through Engine::decode. Writes the logits
  // after the last one to `last` [vocab] unless null; after every one to `all` [tokens.size(), vocab] unless null. On any
  // error the session is as it was before the call.
  virtual void feed(std::span<const int32_t> tokens, float* last, float* all = nullptr,
                    const Progress& progress = nullptr) = 0;
  virtual std::unique_ptr<Session> fork() const = 0;
  // Written beside `path` and renamed, so that a full disk leaves the old file.
  virtual void save(const std::string& path) const = 0;
};

// From the headers alone, without opening the model.
FLASH_MOE_API MemoryPlan plan_memory(const std::string& path, const EngineOptions& options,
                                     int64_t context_tokens);
FLASH_MOE_API ModelInfo inspect(const std::string& path);

}  // namespace flash_moe
