#include "base/cgroup.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/aligned_memory.h"
#include "test.h"

using flash_moe::MemoryState;
using flash_moe::no_memory_limit;
using flash_moe::process_resident_bytes;
using flash_moe::read_memory_state;

#if !defined(__APPLE__)

namespace {

// A root folder with the files that the kernel would show.
class FakeRoot {
 public:
  FakeRoot() {
    path_ = (std::filesystem::temp_directory_path() / "flash_moe_test_XXXXXX").string();
    if (!::mkdtemp(path_.data())) std::perror("mkdtemp");
    put("/proc/meminfo", "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n");
    put("/proc/self/statm", "5000 250 100 1 0 60 0\n");
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;
  void put(const std::string& file, const std::string& content) const {
    const std::filesystem::path full = path_ + file;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << content;
  }
  void v1(const std::string& top = "/") const {
    put("/proc/self/mountinfo", "30 24 0:26 " + top +
                                    " /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
                                    "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    put("/proc/self/cgroup", "9:cpu:/\n4:memory:/jobs/one\n0::/\n");
  }
  void v2() const {
    put("/proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
    put("/proc/self/cgroup", "0::/user/app\n");
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

TEST(without_groups_the_machine_is_the_limit) {
  const FakeRoot root;
  const MemoryState state = read_memory_state(root.path());
  CHECK(state.machine_bytes == 1000 * 1024);
  CHECK(state.machine_available_bytes == 600 * 1024);
  CHECK(state.limit_bytes == no_memory_limit && state.limit_available_bytes == no_memory_limit);
  CHECK(state.available_bytes() == 600 * 1024);
  CHECK(state.process_bytes == 250 * flash_moe::page_bytes());
}

TEST(the_lowest_limit_of_a_v1_group_and_its_ancestors_counts) {
  const FakeRoot root;
  root.v1();
  const std::string memory = "/sys/fs/cgroup/memory";
  root.put(memory + "/memory.limit_in_bytes", "9223372036854771712\n");
  root.put(memory + "/jobs/memory.limit_in_bytes", "300000\n");
  root.put(memory + "/jobs/memory.usage_in_bytes", "250000\n");
  root.put(memory + "/jobs/memory.stat", "cache 1\ntotal_cache 9\ntotal_inactive_file 100000\ntotal_active_file 50000\n");
  root.put(memory + "/jobs/one/memory.limit_in_bytes", "400000\n");
  root.put(memory + "/jobs/one/memory.usage_in_bytes", "350000\n");
  const MemoryState state = read_memory_state(root.path());
  CHECK(state.limit_bytes == 300000);
  // 50 000 are left in the inner group; the outer has 200 000, as its page cache can go.
  CHECK(state.limit_available_bytes == 50000);
  CHECK(state.available_bytes() == 50000);
}

TEST(a_container_sees_its_own_group_as_the_top) {
  const FakeRoot root;
  root.v1("/jobs/one");
  root.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "200000\n");
  root.put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n");
  const MemoryState state = read_memory_state(root.path());
  CHECK(state.limit_bytes == 200000 && state.limit_available_bytes == 199000);
}

TEST(a_group_that_is_not_seen_leaves_those_above_it) {
  const FakeRoot root;
  root.v1();
  root.put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "123456\n");
  CHECK(read_memory_state(root.path()).limit_bytes == 123456);
}

TEST(v2_limits_are_max_and_high_up_the_tree) {
  const FakeRoot root;
  root.v2();
  const std::string group = "/sys/fs/cgroup/user";
  root.put(group + "/app/memory.max", "max\n");
  root.put(group + "/memory.max", "500000\n");
  root.put(group + "/memory.high", "450000\n");
  root.put(group + "/memory.current", "400000\n");
  root.put(group + "/memory.stat", "anon 1\nfile 7\ninactive_file 60000\nactive_file 40000\n");
  const MemoryState state = read_memory_state(root.path());
  CHECK(state.limit_bytes == 450000);
  CHECK(state.limit_available_bytes == 150000);
}

TEST(use_above_the_limit_leaves_nothing) {
  const FakeRoot root;
  root.v2();
  root.put("/sys/fs/cgroup/user/app/memory.max", "1000\n");
  root.put("/sys/fs/cgroup/user/app/memory.current", "5000\n");
  CHECK(read_memory_state(root.path()).available_bytes() == 0);
}

TEST(garbage_is_no_limit) {
  const FakeRoot root;
  root.v2();
  root.put("/sys/fs/cgroup/user/app/memory.max", "lots\n");
  root.put("/proc/self/statm", "x\n");
  const MemoryState state = read_memory_state(root.path());
  CHECK(state.limit_bytes == no_memory_limit && state.process_bytes == 0);
}

#endif

TEST(this_machine_has_memory) {
  const MemoryState state = read_memory_state();
  CHECK(state.machine_bytes > (64u << 20));
  CHECK(state.available_bytes() > 0 && state.available_bytes() <= state.machine_bytes);
  CHECK(state.process_bytes > 0 && state.process_bytes < state.machine_bytes);
  CHECK(process_resident_bytes() > 0);
}
