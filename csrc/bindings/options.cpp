#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace flash_moe::bindings {
namespace {

void bind_model_info(nb::module_& m) {
  nb::class_<LayerInfo>(m, "LayerInfo", "Formats and bytes of one layer.")
      .def_ro("full_attention", &LayerInfo::full_attention)
      .def_ro("is_moe", &LayerInfo::is_moe)
      .def_ro("mixer_format", &LayerInfo::mixer_format)
      .def_ro("experts_format", &LayerInfo::experts_format)
      .def_ro("expert_bits", &LayerInfo::expert_bits)
      .def_ro("resident_bytes", &LayerInfo::resident_bytes)
      .def_ro("expert_bytes", &LayerInfo::expert_bytes)
      .def_ro("experts", &LayerInfo::experts);
  nb::class_<ModelInfo>(m, "ModelInfo", "What a model folder holds and how it runs; bytes are of storage.")
      .def_ro("path", &ModelInfo::path)
      .def_ro("architecture", &ModelInfo::architecture)
      .def_ro("format", &ModelInfo::format)
      .def_ro("quantisation", &ModelInfo::quantisation)
      .def_ro("layers", &ModelInfo::layers)
      .def_ro("moe_layers", &ModelInfo::moe_layers)
      .def_ro("full_attention_layers", &ModelInfo::full_attention_layers)
      .def_ro("hidden", &ModelInfo::hidden)
      .def_ro("vocab", &ModelInfo::vocab)
      .def_ro("context", &ModelInfo::context)
      .def_ro("experts", &ModelInfo::experts)
      .def_ro("experts_per_token_trained", &ModelInfo::experts_per_token_trained)
      .def_ro("experts_per_token", &ModelInfo::experts_per_token)
      .def_ro("skipped_tensors", &ModelInfo::skipped_tensors)
      .def_ro("resident_bytes", &ModelInfo::resident_bytes)
      .def_ro("expert_bytes", &ModelInfo::expert_bytes)
      .def_ro("experts_bytes", &ModelInfo::experts_bytes)
      .def_ro("slot_bytes", &ModelInfo::slot_bytes)
      .def_ro("mtp_tensors", &ModelInfo::mtp_tensors)
      .def_ro("layer_info", &ModelInfo::layer_info)
      .def_ro("backend", &ModelInfo::backend);
}

void bind_memory_plan(nb::module_& m) {
  nb::class_<MemoryPlan>(m, "MemoryPlan", "How a memory bound is divided, in bytes, slots and tokens.")
      .def_ro("memory_bytes", &MemoryPlan::memory_bytes)
      .def_ro("process_bytes", &MemoryPlan::process_bytes)
      .def_ro("resident_bytes", &MemoryPlan::resident_bytes)
      .def_ro("step_bytes", &MemoryPlan::step_bytes)
      .def_ro("sequence_bytes", &MemoryPlan::sequence_bytes)
      .def_ro("slots_bytes", &MemoryPlan::slots_bytes)
      .def_ro("slots", &MemoryPlan::slots)
      .def_ro("slots_all", &MemoryPlan::slots_all)
      .def_ro("slots_min", &MemoryPlan::slots_min)
      .def_ro("memory_bytes_min", &MemoryPlan::memory_bytes_min)
      .def_ro("prefill_chunk", &MemoryPlan::prefill_chunk)
      .def_ro("context_tokens", &MemoryPlan::context_tokens);
}

void bind_stats(nb::module_& m) {
  nb::class_<PhaseStats>(m, "PhaseStats", "Wall time, calls and bytes touched of one phase of a step.")
      .def_ro("name", &PhaseStats::name)
      .def_ro("ns", &PhaseStats::ns)
      .def_ro("calls", &PhaseStats::calls)
      .def_ro("bytes", &PhaseStats::bytes);
  nb::class_<Stats>(m, "Stats", "What the engine counted since the last reset; times are wall time in ns.")
      .def_ro("phases", &Stats::phases)
      .def_ro("step_ns", &Stats::step_ns)
      .def_ro("steps", &Stats::steps)
      .def_ro("prefill_tokens", &Stats::prefill_tokens)
      .def_ro("decode_tokens", &Stats::decode_tokens)
      .def_ro("prefill_ns", &Stats::prefill_ns)
      .def_ro("decode_ns", &Stats::decode_ns)
      .def_ro("expert_hits", &Stats::expert_hits)
      .def_ro("expert_joined", &Stats::expert_joined)
      .def_ro("expert_misses", &Stats::expert_misses)
      .def_ro("read_bytes", &Stats::read_bytes)
      .def_ro("read_ns", &Stats::read_ns)
      .def_ro("wait_ns", &Stats::wait_ns)
      .def_ro("prefetched", &Stats::prefetched)
      .def_ro("prefetch_used", &Stats::prefetch_used)
      .def_ro("prefetch_late", &Stats::prefetch_late)
      .def_ro("failed_reads", &Stats::failed_reads)
      .def_ro("slots", &Stats::slots)
      .def_ro("cache_mode", &Stats::cache_mode)
      .def_ro("io_engine", &Stats::io_engine)
      .def_ro("policy", &Stats::policy)
      .def_ro("lossy", &Stats::lossy);
}

}  // namespace

void bind_options(nb::module_& m) {
  nb::class_<EngineOptions>(m, "EngineOptions", "How an engine is opened; see flash_moe.Engine for the meaning.")
      .def(nb::init<>())
      .def_rw("backend", &EngineOptions::backend)
      .def_rw("memory_bytes", &EngineOptions::memory_bytes)
      .def_rw("experts_per_token", &EngineOptions::experts_per_token)
      .def_rw("thread_count", &EngineOptions::thread_count)
      .def_rw("activations", &EngineOptions::activations)
      .def_rw("kv_dtype", &EngineOptions::kv_dtype)
      .def_rw("isa", &EngineOptions::isa)
      .def_rw("cache", &EngineOptions::cache)
      .def_rw("policy", &EngineOptions::policy)
      .def_rw("io", &EngineOptions::io)
      .def_rw("queue_depth", &EngineOptions::queue_depth)
      .def_rw("cache_slots", &EngineOptions::cache_slots)
      .def_rw("prefill_chunk", &EngineOptions::prefill_chunk)
      .def_rw("prefetch", &EngineOptions::prefetch)
      .def_rw("load", &EngineOptions::load)
      .def_rw("fail_read", &EngineOptions::fail_read);
  bind_model_info(m);
  bind_memory_plan(m);
  bind_stats(m);
}

}  // namespace flash_moe::bindings
