#include "flash_moe/tools.h"

#include "backend/create.h"
#include "base/memory_probe.h"
#include "flash_moe/error.h"
#include "io/drive_probe.h"
#include "io/file.h"
#include "model/pack_model.h"
#include "store/policy.h"
#include "store/simulator.h"

namespace flash_moe {

std::vector<double> simulate_cache(const RouteTrace& trace, const std::string& policy,
                                   std::span<const int64_t> capacities) {
  std::vector<double> rates;
  for (const int64_t capacity : capacities) {
    if (capacity < 1) throw ConfigError("a cache of " + std::to_string(capacity) + " experts: wanted at least 1");
    const auto slots = static_cast<size_t>(capacity);
    const store::SimulationResult result = policy == "belady"
                                               ? store::simulate_belady(trace.rows, slots)
                                               : store::simulate(trace.rows, policy, slots, 0, trace.logits);
    rates.push_back(result.hit_rate());
  }
  return rates;
}

std::vector<std::string> policy_names() { return store::policy_names(); }

std::map<std::string, std::string> backends() {
  return {{"cpu", ""},
          {"metal", backend::metal_unavailable_reason()},
          {"cuda", backend::cuda_unavailable_reason()}};
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (auto table = kernels::available_kernels(kernels::Precision::fast); *table; ++table)
    names.emplace_back((*table)->name);
  return names;
}

double measure_memory_bandwidth(int threads, double seconds) {
  return probe_memory({.threads = threads, .seconds = seconds});
}

std::vector<double> measure_drive_bandwidth(const std::string& path, std::span<const int> depths,
                                            const DriveOptions& options) {
  const io::File file(path);
  io::DriveProbeOptions probe;
  probe.engine = options.io;
  probe.record_bytes = options.record_bytes;
  probe.bytes_max = options.bytes_max;
  probe.seconds_max = options.seconds_max;
  probe.direct = options.direct;
  std::vector<double> rates;
  for (const io::DriveSpeed& speed : io::probe_drive(file, depths, probe)) rates.push_back(speed.bytes_per_second());
  return rates;
}

PackReport pack_model(const std::string& source, const std::string& target, const PackOptions& options,
                      const Progress& progress) {
  model::PackSettings settings;
  settings.bits = options.bits;
  if (options.group_size != 0) settings.group = options.group_size;
  for (const auto& [pattern, bits] : options.module_bits) settings.overrides.push_back({pattern, bits, 0});
  settings.allow_requantise = options.requantise;
  model::ByteProgress bytes_progress;
  if (progress) {
    bytes_progress = [&progress](uint64_t done, uint64_t total) {
      return progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
    };
  }
  const model::PackResult result = model::pack_folder(source, target, settings, bytes_progress);
  return {result.bytes, result.layers_written + result.layers_kept + 1, result.layers_kept > 0};
}

}  // namespace flash_moe
