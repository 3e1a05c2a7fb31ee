#include "flash_moe/tools.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>

#include "bindings.h"

namespace flash_moe::bindings {

using namespace nb::literals;

void bind_tools(nb::module_& m) {
  nb::class_<PackOptions>(m, "PackOptions", "What a pack is made of; see `flash-moe pack --help`.")
      .def(nb::init<>())
      .def_rw("bits", &PackOptions::bits)
      .def_rw("group_size", &PackOptions::group_size)
      .def_rw("module_bits", &PackOptions::module_bits)
      .def_rw("requantise", &PackOptions::requantise);
  nb::class_<PackReport>(m, "PackReport", "What a finished pack holds.")
      .def_ro("bytes", &PackReport::bytes)
      .def_ro("files", &PackReport::files)
      .def_ro("resumed", &PackReport::resumed);
  m.def(
      "pack_model",
      [](const std::string& source, const std::string& target, const PackOptions& options, nb::object callback) {
        const Progress progress = python_progress(std::move(callback));
        PackReport report;
        run_released([&] { report = pack_model(source, target, options, progress); });
        return report;
      },
      "source"_a, "target"_a, "options"_a, "progress"_a.none() = nb::none(),
      "Write a model folder as a pack, resuming an unfinished one, and read it back.");
  m.def(
      "cache_sim",
      [](std::vector<std::vector<int32_t>> rows,
         const std::optional<nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>>& logits,
         const std::string& policy, const std::vector<int64_t>& capacities) {
        RouteTrace trace{std::move(rows), {}};
        if (logits) trace.logits.assign(logits->data(), logits->data() + logits->size());
        std::vector<double> rates;
        run_released([&] { rates = simulate_cache(trace, policy, capacities); });
        return rates;
      },
      "rows"_a, "logits"_a.none(), "policy"_a, "capacities"_a,
      "Hit rates of a policy (\"belady\" is the optimum) over rows of layer and expert ids, and router logits [rows, experts].");
  m.def(
      "measure_memory",
      [](int threads, double seconds) {
        double rate = 0;
        run_released([&] { rate = measure_memory_bandwidth(threads, seconds); });
        return rate;
      },
      "threads"_a, "seconds"_a = 0.3, "Bytes a second that memory gives to so many reading threads.");
  m.def(
      "measure_drive",
      [](const std::string& path, const std::vector<int>& depths, uint64_t record_bytes, bool direct,
         const std::string& io, double seconds_max) {
        DriveOptions options;
        options.io = io;
        options.record_bytes = record_bytes;
        options.seconds_max = seconds_max;
        options.direct = direct;
        std::vector<double> rates;
        run_released([&] { rates = measure_drive_bandwidth(path, depths, options); });
        return rates;
      },
      "path"_a, "depths"_a, "record_bytes"_a, "direct"_a = true, "io"_a = "auto", "seconds_max"_a = 1.0,
      "Bytes a second of reading records at random places of a file, by number of reads in flight.");
  m.def("policy_names", &policy_names, "Eviction policies by name.");
  m.def("backends", &backends, "Backends by name: empty when usable here, else the reason why not.");
  m.def("cpu_isas", &cpu_isas, "Names of the CPU kernels that this machine can run, the fastest last.");
}

}  // namespace flash_moe::bindings
