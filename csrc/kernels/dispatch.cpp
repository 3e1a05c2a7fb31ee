// Which tables this CPU can run.

#include <cstring>

#include "base/cpu_features.h"
#include "kernels/tables.h"

namespace flash_moe::kernels {
namespace {

constexpr int kTablesMax = 6;

Kernels fast_table(const Kernels& floats, const IntegerKernels& integers) {
  Kernels table = floats;
  table.name = integers.name;
  table.precision = Precision::fast;
  table.prepared_bytes = integers.prepared_bytes;
  table.prepare_row = integers.prepare_row;
  table.matmul = integers.matmul;
  return table;
}

struct TableList {
  Kernels made[kTablesMax] = {};
  const Kernels* tables[kTablesMax + 1] = {};
  int count = 0;

  void add(const Kernels& table) {
    made[count] = table;
    tables[count] = &made[count];
    ++count;
  }
  void add(const Kernels& floats, const IntegerKernels& integers) { add(fast_table(floats, integers)); }
#if defined(__APPLE__)
  // NEON but for linear attention.
  void add_accelerate(const IntegerKernels* integers) {
    Kernels table = integers ? fast_table(kNeonFloat32, *integers) : kNeonFloat32;
    table.name = "accelerate";
    table.has_reference_bits = false;
    table.delta_step = accelerate_delta_step;
    add(table);
  }
#endif
};

// Adds to `list` in place: its tables point into it.
void add_available(TableList& list, Precision precision) {
  list.tables[list.count++] = &reference_kernels(precision);
  const CpuFeatures& cpu = cpu_features();
#if defined(__x86_64__)
  if (precision == Precision::float32) {
    if (cpu.avx2) list.add(kAvx2Float32);
    if (cpu.avx512) list.add(kAvx512Float32);
  } else {
    if (cpu.avx2) list.add(kAvx2Float32, kAvx2Integer);
    if (cpu.avxvnni) list.add(kAvx2Float32, kAvxVnniInteger);
    if (cpu.avx512vnni) list.add(kAvx512Float32, kAvx512VnniInteger);
    if (cpu.amx_int8) list.add(kAvx512Float32, kAmxInteger);
  }
#elif defined(__aarch64__)
#if defined(__APPLE__)
  list.add_accelerate(precision == Precision::float32 ? nullptr : cpu.neon_dot ? &kNeonDotInteger : &kNeonInteger);
#endif
  if (precision == Precision::float32) {
    if (cpu.neon) list.add(kNeonFloat32);
  } else {
    if (cpu.neon) list.add(kNeonFloat32, kNeonInteger);
    if (cpu.neon_dot) list.add(kNeonFloat32, kNeonDotInteger);
  }
#endif
}

struct Detected {
  TableList float32, fast;
  Detected() {
    add_available(float32, Precision::float32);
    add_available(fast, Precision::fast);
  }
};

const TableList& detected(Precision precision) {
  static const Detected all;
  return precision == Precision::fast ? all.fast : all.float32;
}

}  // namespace

const Kernels* const* available_kernels(Precision precision) { return detected(precision).tables; }

const Kernels* find_kernels(const char* name, Precision precision) {
  const TableList& list = detected(precision);
  if (std::strcmp(name, "auto") == 0) return list.tables[list.count - 1];
  for (int i = 0; i < list.count; ++i) {
    if (std::strcmp(list.tables[i]->name, name) == 0) return list.tables[i];
  }
  return nullptr;
}

}  // namespace flash_moe::kernels
