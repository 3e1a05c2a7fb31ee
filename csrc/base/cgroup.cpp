#include "base/cgroup.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

#include "base/aligned_memory.h"

#if defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif

namespace flash_moe {

#if defined(__APPLE__)

uint64_t process_resident_bytes(const std::string&) {
  task_vm_info_data_t info{};
  mach_msg_type_number_t count = TASK_VM_INFO_COUNT;
  if (::task_info(::mach_task_self(), TASK_VM_INFO, reinterpret_cast<task_info_t>(&info), &count) !=
      KERN_SUCCESS) {
    return 0;
  }
  return info.phys_footprint;  // what the system's own memory limit counts
}

MemoryState read_memory_state(const std::string&) {
  MemoryState state;
  size_t bytes = sizeof state.machine_bytes;
  ::sysctlbyname("hw.memsize", &state.machine_bytes, &bytes, nullptr, 0);
  vm_statistics64_data_t vm{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  if (::host_statistics64(::mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&vm),
                          &count) == KERN_SUCCESS) {
    const uint64_t pages = uint64_t{vm.free_count} + vm.external_page_count + vm.purgeable_count;
    state.machine_available_bytes = pages * page_bytes();
  }
  state.process_bytes = process_resident_bytes();
  return state;
}

#else

namespace {

// A file that holds one number. False if it is absent or says "max".
bool read_number(const std::string& path, uint64_t& out) {
  std::ifstream file(path);
  return static_cast<bool>(file >> out);
}

// The number after `name` in lines of the form "name[:] number".
uint64_t read_field(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string word;
  uint64_t value = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (words >> word >> value && (word == name || word == name + ":")) return value;
  }
  return 0;
}

struct Mount {
  std::string folder;  // where the hierarchy is seen
  std::string top;     // which of its groups is seen there
};

// The words of a line of mountinfo: id parent device root folder options [tags] - type source options.
bool find_mount(const std::string& root, bool v2, Mount& out) {
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string id, parent, device, type, source, options;
    Mount mount;
    if (!(before >> id >> parent >> device >> mount.top >> mount.folder)) continue;
    if (!(after >> type >> source >> options)) continue;
    const bool memory = ("," + options + ",").find(",memory,") != std::string::npos;
    if (type != (v2 ? "cgroup2" : "cgroup") || (!v2 && !memory)) continue;
    mount.folder = root + mount.folder;
    out = mount;
    return true;
  }
  return false;
}

// The process's group in the hierarchy: lines "number:controllers:path", controllers empty for v2.
bool find_group(const std::string& root, bool v2, std::string& out) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (v2 ? controllers != ",," : controllers.find(",memory,") == std::string::npos) continue;
    out = line.substr(second + 1);
    return true;
  }
  return false;
}

void apply_group(const std::string& folder, bool v2, MemoryState& state) {
  uint64_t limit = no_memory_limit;
  uint64_t value = 0;
  if (v2) {
    // Above memory.high the kernel stalls the process, which is no place to be either.
    for (const char* name : {"/memory.max", "/memory.high"}) {
      if (read_number(folder + name, value)) limit = std::min(limit, value);
    }
  } else if (read_number(folder + "/memory.limit_in_bytes", value)) {
    limit = value;
  }
  // v1 spells "no limit" as the largest number of pages.
  if (limit >= uint64_t{1} << 60) return;
  uint64_t used = 0;
  read_number(folder + (v2 ? "/memory.current" : "/memory.usage_in_bytes"), used);
  const std::string stat = folder + "/memory.stat";
  const std::string prefix = v2 ? "" : "total_";
  const uint64_t cache =
      read_field(stat, prefix + "inactive_file") + read_field(stat, prefix + "active_file");
  used -= std::min(used, cache);
  state.limit_bytes = std::min(state.limit_bytes, limit);
  state.limit_available_bytes =
      std::min(state.limit_available_bytes, limit - std::min(limit, used));
}

// The group and those above it, up to the mount. In a container the path may name a group that is not seen here; the
// ones that are seen still count.
void apply_hierarchy(const std::string& root, bool v2, MemoryState& state) {
  Mount mount;
  std::string group;
  if (!find_mount(root, v2, mount) || !find_group(root, v2, group)) return;
  if (mount.top != "/" && group.compare(0, mount.top.size(), mount.top) == 0) {
    group.erase(0, mount.top.size());
  }
  while (!group.empty() && group.back() == '/') group.pop_back();
  for (;;) {
    apply_group(mount.folder + group, v2, state);
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return;
    group.erase(slash);
  }
}

}  // namespace

uint64_t process_resident_bytes(const std::string& root) {
  std::FILE* file = std::fopen((root + "/proc/self/statm").c_str(), "re");
  if (!file) return 0;
  unsigned long long size = 0;
  unsigned long long resident = 0;
  const int found = std::fscanf(file, "%llu %llu", &size, &resident);
  std::fclose(file);
  return found == 2 ? resident * page_bytes() : 0;
}

MemoryState read_memory_state(const std::string& root) {
  constexpr uint64_t kib = 1024;
  MemoryState state;
  const std::string meminfo = root + "/proc/meminfo";
  state.machine_bytes = read_field(meminfo, "MemTotal") * kib;
  state.machine_available_bytes = read_field(meminfo, "MemAvailable") * kib;
  state.process_bytes = process_resident_bytes(root);
  apply_hierarchy(root, false, state);
  apply_hierarchy(root, true, state);
  return state;
}

#endif

}  // namespace flash_moe
