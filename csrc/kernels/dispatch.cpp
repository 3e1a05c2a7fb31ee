// Which tables this CPU can run.

#include <cstring>

#include "kernels/kernels.h"

namespace flash_moe::kernels {
namespace {

constexpr int kTablesMax = 6;

struct TableList {
  const Kernels* tables[kTablesMax + 1] = {};
  int count = 0;

  void add(const Kernels& table) { tables[count++] = &table; }
};

TableList detect(Precision precision) {
  TableList list;
  list.add(reference_kernels(precision));
  return list;
}

const TableList& detected(Precision precision) {
  static const TableList float32 = detect(Precision::float32);
  static const TableList fast = detect(Precision::fast);
  return precision == Precision::fast ? fast : float32;
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
