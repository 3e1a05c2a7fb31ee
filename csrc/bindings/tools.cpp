#include "flash_moe/tools.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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
      [](const std::vector<std::vector<int32_t>>& rows, const std::string& policy,
         const std::vector<int64_t>& capacities) {
        std::vector<double> rates;
        run_released([&] { rates = simulate_cache(rows, policy, capacities); });
        return rates;
      },
      "rows"_a, "policy"_a, "capacities"_a,
      "Hit rates of a policy (\"belady\" is the optimum) over rows of layer and expert ids.");
  m.def("policy_names", &policy_names, "Eviction policies by name.");
  m.def("backends", &backends, "Backends by name: empty when usable here, else the reason why not.");
  m.def("cpu_isas", &cpu_isas, "Names of the CPU kernels that this machine can run, slowest first.");
}

}  // namespace flash_moe::bindings
