#include "threadgroup.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace rig {
namespace {

constexpr size_t kPage = 4096;

thread_local Threadgroup* current_threadgroup = nullptr;

std::string at(const char* file, int line) {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}

int smaller(int a, int b) { return a < b ? a : b; }

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

GuardedMemory::GuardedMemory(size_t bytes) : bytes_(bytes), data_(allocate(bytes)) {}

GuardedMemory::~GuardedMemory() { release(data_, bytes_); }

char* GuardedMemory::allocate(size_t bytes) {
  const size_t used = round_up((bytes ? bytes : 1), 16);
  const size_t body = round_up(used, kPage);
  void* memory = mmap(nullptr, body + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* first = static_cast<char*>(memory);
  mprotect(first, kPage, PROT_NONE);
  mprotect(first + kPage + body, kPage, PROT_NONE);
  std::memset(first + kPage, 0xff, body);
  return first + kPage + (body - used);
}

void GuardedMemory::release(char* data, size_t bytes) {
  const size_t used = round_up((bytes ? bytes : 1), 16);
  const size_t body = round_up(used, kPage);
  munmap(data - (body - used) - kPage, body + 2 * kPage);
}

Threadgroup::Threadgroup(gpu_entry entry, const gpu_bindings& bindings, const uint32_t* threadgroup_bytes,
                         uint32_t thread_count, gpu_order order, uint32_t seed)
    : entry_(entry), bindings_(bindings), threadgroup_bytes_(threadgroup_bytes), order_(order), seed_(seed),
      threads_(thread_count), groups_((thread_count + GPU_SIMD_WIDTH - 1) / GPU_SIMD_WIDTH) {}

Threadgroup::~Threadgroup() { sanitizer_acquire(&end_tag_); }

Threadgroup* Threadgroup::current() { return current_threadgroup; }

std::string Threadgroup::current_thread() const {
  const gpu_ids& ids = running_->ids;
  const gpu_dim& group = ids.threadgroup_position_in_grid;
  return "threadgroup " + std::to_string(group.x) + "," + std::to_string(group.y) + "," + std::to_string(group.z) +
         " simdgroup " + std::to_string(ids.simdgroup_index_in_threadgroup) + " lane " +
         std::to_string(ids.thread_index_in_simdgroup);
}

void Threadgroup::fail(const std::string& what, const Thread& thread) {
  if (!error_.empty()) return;
  running_ = const_cast<Thread*>(&thread);
  error_ = what + " [" + current_thread() + "]";
}

// Poison: 0xff bytes are a NaN in every float format. Threadgroup arguments come first, variables as they are met.
void Threadgroup::lay_out_memory() {
  if (!memory_) memory_ = std::make_unique<GuardedMemory>(GPU_THREADGROUP_BYTES_MAX);
  std::memset(memory_->data(), 0xff, GPU_THREADGROUP_BYTES_MAX);
  memory_used_ = 0;
  variables_.clear();
  for (int i = 0; i < GPU_BUFFERS; ++i) {
    if (threadgroup_bytes_[i] == 0) continue;
    bindings_.threadgroup[i] = memory_->data() + memory_used_;
    memory_used_ += round_up(threadgroup_bytes_[i], 16);
  }
}

void Threadgroup::fill_ids(Thread& thread, int index, const ThreadgroupPlace& place) const {
  gpu_ids& ids = thread.ids;
  const auto i = static_cast<unsigned>(index);
  const gpu_dim& size = place.threads;
  const gpu_dim local{i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  ids.thread_position_in_threadgroup = local;
  ids.threadgroup_position_in_grid = place.position;
  ids.thread_position_in_grid = {place.position.x * place.full_size.x + local.x,
                                 place.position.y * place.full_size.y + local.y,
                                 place.position.z * place.full_size.z + local.z};
  ids.threads_per_threadgroup = size;
  ids.dispatch_threads_per_threadgroup = place.full_size;
  ids.threadgroups_per_grid = place.grid_threadgroups;
  ids.threads_per_grid = place.grid_threads;
  ids.thread_index_in_threadgroup = i;
  ids.thread_index_in_simdgroup = i % GPU_SIMD_WIDTH;
  ids.simdgroup_index_in_threadgroup = i / GPU_SIMD_WIDTH;
  ids.simdgroups_per_threadgroup = static_cast<unsigned>(group_count_);
  ids.threads_per_simdgroup = GPU_SIMD_WIDTH;
}

void Threadgroup::choose_order(const ThreadgroupPlace& place) {
  group_order_.resize(group_count_);
  for (size_t i = 0; i < group_count_; ++i) group_order_[i] = static_cast<int>(i);
  for (int i = 0; i < GPU_SIMD_WIDTH; ++i) lane_order_[i] = i;
  const uint32_t seed = seed_ + place.position.x * 7919 + place.position.y * 104729 + place.position.z;
  arrange(group_order_.data(), group_order_.size(), order_, seed);
  arrange(lane_order_, GPU_SIMD_WIDTH, order_, seed + 1);
}

void Threadgroup::prepare(const ThreadgroupPlace& place) {
  const int count = static_cast<int>(place.threads.x * place.threads.y * place.threads.z);
  const int group_count = (count + GPU_SIMD_WIDTH - 1) / GPU_SIMD_WIDTH;
  thread_count_ = static_cast<size_t>(count);
  group_count_ = static_cast<size_t>(group_count);
  lay_out_memory();
  choose_order(place);
  while (stacks_.size() < thread_count_) stacks_.push_back(std::make_unique<Stack>());
  for (int g = 0; g < group_count; ++g) {
    Simdgroup& group = groups_[static_cast<size_t>(g)];
    group.threads = &threads_[static_cast<size_t>(g) * GPU_SIMD_WIDTH];
    group.count = group.ready_count = smaller(GPU_SIMD_WIDTH, count - g * GPU_SIMD_WIDTH);
  }
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads_[static_cast<size_t>(i)];
    thread.group = &groups_[static_cast<size_t>(i / GPU_SIMD_WIDTH)];
    thread.state = State::ready;
    thread.lane = static_cast<uint8_t>(i % GPU_SIMD_WIDTH);
    fill_ids(thread, i, place);
    thread.fiber.start(*stacks_[static_cast<size_t>(i)], thread_body);
  }
  alive_count_ = count;
  waiting_count_ = 0;
}

void Threadgroup::thread_body() {
  Threadgroup* self = current_threadgroup;
  Thread* thread = self->running_;
  fiber_entered(thread->fiber);
  self->entry_(&self->bindings_, &thread->ids);
  self->finish_thread(*thread);
}

void Threadgroup::finish_thread(Thread& thread) {
  thread.state = State::done;
  --thread.group->ready_count;
  --alive_count_;
  sanitizer_release(&end_tag_);
  thread.fiber.leave(true);
  std::abort();  // a fiber that left for good is never entered again
}

void Threadgroup::run_ready_threads(Simdgroup& group) {
  while (group.ready_count > 0) {
    for (const int lane : lane_order_) {
      if (lane >= group.count || group.threads[lane].state != State::ready) continue;
      running_ = &group.threads[lane];
      running_->fiber.enter();
    }
  }
}

// All lanes of the group wait or are done. True when a simdgroup function could complete.
bool Threadgroup::complete_simd_operation(Simdgroup& group) {
  const Thread* first = nullptr;
  for (int i = 0; i < group.count && !first; ++i) {
    if (group.threads[i].state == State::in_simd) first = &group.threads[i];
  }
  if (first == nullptr) return false;
  for (int i = 0; i < group.count; ++i) {
    const Thread& other = group.threads[i];
    if (other.state == State::in_simd && other.line == first->line && other.file == first->file) continue;
    const std::string where = at(first->file, first->line);
    fail(other.state == State::done
             ? "divergence: a lane waits in a simdgroup function at " + where + " and another has returned"
             : "divergence: a lane waits at " + where + " and another at " + at(other.file, other.line),
         *first);
    return false;
  }
  // Word by word: ThreadSanitizer intercepts memcpy, and this is the rig's traffic, not the kernel's. A group at the
  // end of a threadgroup has inactive lanes; what they would hand over is NaN.
  for (int i = 0; i < GPU_SIMD_WIDTH; ++i) {
    for (int word = 0; word < gpu_lane_bytes / 8; ++word) {
      auto* from = reinterpret_cast<volatile uint64_t*>(group.slots[i]);
      reinterpret_cast<volatile uint64_t*>(group.results[i])[word] = i < group.count ? from[word] : ~uint64_t{0};
    }
  }
  ++totals_.simd_operations;
  for (int i = 0; i < group.count; ++i) group.threads[i].state = State::ready;
  group.ready_count = group.count;
  return true;
}

// No thread can run. True when they all wait in one barrier, which is then open.
bool Threadgroup::complete_barrier() {
  const Thread* first = nullptr;
  for (size_t i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state != State::in_barrier) continue;
    if (first == nullptr) first = &thread;
    if (thread.line == first->line && thread.file == first->file) continue;
    fail("divergence: threads of one threadgroup wait in different barriers, " + at(first->file, first->line) + " and " +
             at(thread.file, thread.line),
         thread);
    return false;
  }
  if (first == nullptr) return false;
  if (waiting_count_ < static_cast<int>(thread_count_)) {
    fail("divergence: the barrier at " + at(first->file, first->line) + " is not reached by all threads", *first);
    return false;
  }
  waiting_count_ = 0;
  ++totals_.barriers;
  for (size_t i = 0; i < thread_count_; ++i) {
    threads_[i].state = State::ready;
    ++threads_[i].group->ready_count;
  }
  return true;
}

bool Threadgroup::run(const ThreadgroupPlace& place) {
  current_threadgroup = this;
  prepare(place);
  while (alive_count_ > 0 && error_.empty()) {
    bool progress = false;
    for (const int g : group_order_) {
      Simdgroup& group = groups_[static_cast<size_t>(g)];
      do {
        progress = progress || group.ready_count > 0;
        run_ready_threads(group);
      } while (error_.empty() && complete_simd_operation(group));
      if (!error_.empty()) break;
    }
    if (error_.empty() && alive_count_ > 0 && !complete_barrier() && !progress) fail("deadlock", threads_[0]);
  }
  if (memory_used_ > totals_.threadgroup_bytes) totals_.threadgroup_bytes = static_cast<uint32_t>(memory_used_);
  for (size_t i = 0; i < thread_count_; ++i) threads_[i].fiber.destroy();
  if (under_thread_sanitizer()) renew_memory();
  current_threadgroup = nullptr;
  return error_.empty();
}

// Threadgroups are unordered to each other, but that they use the rig's stacks and memory in turn is no race:
// ThreadSanitizer forgets a range when it is unmapped.
void Threadgroup::renew_memory() {
  stacks_.clear();
  memory_.reset();
}

void Threadgroup::wait(State state, const char* file, int line) {
  Thread* thread = running_;
  thread->state = state;
  thread->file = file;
  thread->line = line;
  --thread->group->ready_count;
  thread->fiber.leave(false);
}

const char* Threadgroup::exchange(const char* file, int line) {
  Simdgroup* group = running_->group;
  wait(State::in_simd, file, line);
  return group->results[0];
}

void Threadgroup::simdgroup_barrier(int flags, const char* file, int line) {
  Simdgroup* group = running_->group;
  if (flags != 0) sanitizer_release(&group->order_tag);
  wait(State::in_simd, file, line);
  if (flags != 0) sanitizer_acquire(&group->order_tag);
}

void Threadgroup::threadgroup_barrier(int flags, const char* file, int line) {
  ++waiting_count_;
  if (flags != 0) sanitizer_release(&barrier_tag_);
  wait(State::in_barrier, file, line);
  if (flags != 0) sanitizer_acquire(&barrier_tag_);
}

void* Threadgroup::variable(const void* key, size_t bytes, size_t alignment) {
  for (const Variable& known : variables_) {
    if (known.key == key) return known.memory;
  }
  memory_used_ = round_up(memory_used_, alignment < 16 ? 16 : alignment);
  void* memory = memory_->data() + memory_used_;
  memory_used_ += bytes;
  if (memory_used_ > GPU_THREADGROUP_BYTES_MAX) {
    fail("more than 32768 bytes of threadgroup memory", *running_);
    finish_thread(*running_);
  }
  variables_.push_back({key, memory});
  return memory;
}

}  // namespace rig

extern "C" {
unsigned gpu_lane() { return rig::Threadgroup::current()->lane(); }
char* gpu_lane_slot() { return rig::Threadgroup::current()->lane_slot(); }
const char* gpu_lane_exchange(const char* file, int line) { return rig::Threadgroup::current()->exchange(file, line); }
void gpu_simdgroup_barrier(int flags, const char* file, int line) {
  rig::Threadgroup::current()->simdgroup_barrier(flags, file, line);
}
void gpu_threadgroup_barrier(int flags, const char* file, int line) {
  rig::Threadgroup::current()->threadgroup_barrier(flags, file, line);
}
void* gpu_threadgroup_variable(const void* key, unsigned long bytes, unsigned long alignment) {
  return rig::Threadgroup::current()->variable(key, bytes, alignment);
}
}
