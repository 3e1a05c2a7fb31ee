// A Metal that runs on the CPU: strict about what the host does, adversarial in when it does it.
//
// DESIGN. Command buffers of a queue run one after another, each on the queue's worker thread. Kernels run in the emulator
// of ../rig. What a real device leaves open, this one chooses against the host:
//   FAKE_METAL_ORDER=reverse|shuffled   dispatches of a concurrent encoder with no barrier between them run in that order,
//                                       and so do the threads of each dispatch
//   FAKE_METAL_RUN=lazy                 nothing runs before somebody waits, and then no more than what was waited for
//   FAKE_METAL_DELAY_US=n               the worker sleeps before each command buffer
//   FAKE_METAL_FAIL=n                   the n-th committed command buffer (from 1) ends with an error and runs nothing
//   FAKE_METAL_MAX_BUFFER=bytes, FAKE_METAL_WORKING_SET=bytes   the device's limits
// What a real device may silently do wrong ends the program with "fake: ...": unbound buffers, an encoder open at commit or
// never ended, two at once, a second commit, waits before commit, misaligned no-copy memory, offsets past the end,
// setBytes above 4 KiB, threadgroups above the pipeline's limit, a buffer of an unretained command buffer freed too early.
// FAKE_METAL_STATS=path: counts of command buffers, dispatches and host waits are written there when the program ends.
#pragma once
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../rig/gpu.h"
#include "objc_runtime.h"

namespace fake {

using objc::Ref;
using objc::Selector;
using UInteger = unsigned long;
constexpr UInteger kPageBytes = 16384;  // of Apple's GPUs

struct Size {
  UInteger width, height, depth;
};

// "fake: ..." and abort: a mistake of the host.
[[noreturn]] void host_error(const std::string& what);
uint64_t setting(const char* name, uint64_t otherwise);
bool is_lazy();
gpu_order order();

struct Counters {
  std::atomic<uint64_t> command_buffers{0}, dispatches{0}, waits{0}, blits{0};
};
Counters& counters();

struct Buffer : objc::Object {
  using Object::Object;
  ~Buffer();
  uint8_t* data = nullptr;
  size_t bytes = 0;
  bool is_private = false;
  std::function<void()> release;  // frees the memory
};
bool is_live(const Buffer* buffer);

struct Library : objc::Object {
  using Object::Object;
  gpu_image* image = nullptr;  // shared by all libraries of the same source, never closed
};

struct Constant {
  uint32_t index, bytes;
  uint64_t value;
};

struct Function : objc::Object {
  using Object::Object;
  const gpu_kernel* kernel = nullptr;
  std::vector<Constant> constants;
};
struct Pipeline : Function {
  using Function::Function;
};
struct ConstantValues : objc::Object {
  using Object::Object;
  std::vector<Constant> values;
};
struct CompileOptions : objc::Object {
  using Object::Object;
  bool is_safe = false;  // maths mode
};

struct SharedEvent : objc::Object {
  using Object::Object;
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t value = 0;
  void signal(uint64_t to);
};

// A bound buffer, or bytes set in the encoder.
struct Binding {
  Buffer* buffer = nullptr;
  std::shared_ptr<Buffer> inline_bytes;
  size_t offset = 0;
};

struct Command {
  enum class Kind { dispatch, copy, signal } kind = Kind::dispatch;
  uint64_t group = 0;  // commands of one group may run in any order
  Ref<Pipeline> pipeline;
  std::array<Binding, GPU_BUFFERS> bindings;
  std::array<uint32_t, GPU_BUFFERS> threadgroup_bytes{};
  gpu_size grid{}, threads{};
  bool grid_is_threads = false;
  Buffer *source = nullptr, *target = nullptr;
  size_t source_offset = 0, target_offset = 0, bytes = 0;
  Ref<SharedEvent> event;
  uint64_t value = 0;
};

struct CommandBuffer;

struct Encoder : objc::Object {
  using Object::Object;
  ~Encoder();
  Ref<CommandBuffer> owner;
  bool is_concurrent = false;
  bool is_ended = false;
  Ref<Pipeline> pipeline;
  std::array<Binding, GPU_BUFFERS> bindings;
  std::array<uint32_t, GPU_BUFFERS> threadgroup_bytes{};
  uint64_t group = 0;
};

struct Queue;

enum class Status : long { not_enqueued = 0, enqueued = 1, committed = 2, scheduled = 3, completed = 4, error = 5 };

struct CommandBuffer : objc::Object {
  using Object::Object;
  ~CommandBuffer();
  Queue* queue = nullptr;  // queues live for ever
  bool retains = true;
  std::vector<Ref<Buffer>> retained;
  std::vector<Command> commands;
  std::vector<void*> completed_handlers;  // blocks
  Encoder* open = nullptr;                // not counted: the encoder counts the command buffer
  uint64_t next_group = 0;
  std::string error;
  std::mutex mutex;
  std::condition_variable changed;
  Status status = Status::not_enqueued;

  Status current();
  void hold(Buffer* buffer);
  void run();
};

struct Queue : objc::Object {
  using Object::Object;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Ref<CommandBuffer>> committed;
  uint64_t unfinished = 0;  // command buffers made and neither completed nor dropped
  void work();              // the worker thread
  bool run_next();          // false when nothing was committed
  void note_finished();
};
// In lazy mode: runs queues, oldest command buffer first, until `reached` or nothing is left.
void run_until(const std::function<bool()>& reached);
std::vector<Queue*>& all_queues();

void define_device_classes();
void define_library_classes();
void define_command_classes();

}  // namespace fake
