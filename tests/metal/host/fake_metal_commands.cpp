// Queues, command buffers and encoders: what the host may do with them, and when they run.
#include <Block.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "fake_metal.h"

namespace fake {

using objc::add_method;
using objc::Class;
using objc::define_class;
using objc::Object;

namespace {

constexpr uint64_t kCommandBuffersMax = 64;  // of a queue; Metal then blocks

// The n-th command buffer to fail, counted over all queues.
bool is_chosen_to_fail(uint64_t number) { return setting("FAKE_METAL_FAIL", 0) == number; }

void check_alive(const CommandBuffer& owner, Buffer* buffer) {
  if (!owner.retains && !is_live(buffer)) host_error("a buffer of an unretained command buffer was freed before it ran");
}

std::string run_dispatch(const CommandBuffer& owner, const Command& command) {
  gpu_dispatch_args args{};
  args.kernel = command.pipeline->kernel;
  args.grid = command.grid;
  args.grid_is_threads = command.grid_is_threads;
  args.threads_per_threadgroup = command.threads;
  for (size_t i = 0; i < GPU_BUFFERS; ++i) {
    const Binding& b = command.bindings[i];
    if (b.inline_bytes) {
      args.buffers[i] = b.inline_bytes->data;
      args.buffer_bytes[i] = b.inline_bytes->bytes;
    } else if (b.buffer) {
      check_alive(owner, b.buffer);
      args.buffers[i] = b.buffer->data + b.offset;
      args.buffer_bytes[i] = b.buffer->bytes - b.offset;
    }
    args.threadgroup_bytes[i] = command.threadgroup_bytes[i];
  }
  std::vector<gpu_constant> constants;
  for (const Constant& c : command.pipeline->constants) constants.push_back({c.index, c.bytes, &c.value});
  args.constants = constants.data();
  args.constant_count = static_cast<uint32_t>(constants.size());
  args.order = order();
  args.seed = 7;
  gpu_result result{};
  return gpu_dispatch(&args, &result) == 0 ? "" : std::string(gpu_kernel_name(args.kernel)) + ": " + result.error;
}

std::string run_command(const CommandBuffer& owner, const Command& command) {
  switch (command.kind) {
    case Command::Kind::dispatch:
      return run_dispatch(owner, command);
    case Command::Kind::copy:
      check_alive(owner, command.source);
      check_alive(owner, command.target);
      std::memcpy(command.target->data + command.target_offset, command.source->data + command.source_offset, command.bytes);
      return "";
    case Command::Kind::signal:
      command.event->signal(command.value);
      return "";
  }
  return "";
}

// Shuffles within groups as the environment says.
std::vector<const Command*> in_adverse_order(const std::vector<Command>& commands) {
  std::vector<const Command*> sorted;
  for (const Command& c : commands) sorted.push_back(&c);
  static thread_local std::mt19937 random(7);
  for (auto begin = sorted.begin(); begin != sorted.end();) {
    auto end = std::find_if(begin, sorted.end(), [&](const Command* c) { return c->group != (*begin)->group; });
    if (order() == GPU_REVERSE) std::reverse(begin, end);
    if (order() == GPU_SHUFFLED) std::shuffle(begin, end, random);
    begin = end;
  }
  return sorted;
}

Encoder* new_encoder(CommandBuffer* owner, const char* class_name, bool is_concurrent) {
  if (owner->current() != Status::not_enqueued) host_error("an encoder on a committed command buffer");
  if (owner->open) host_error("a second encoder while one is open");
  auto* encoder = objc::make<Encoder>(class_name);
  encoder->owner = Ref<CommandBuffer>(owner);
  encoder->is_concurrent = is_concurrent;
  encoder->group = owner->next_group++;
  owner->open = encoder;
  return objc::autoreleased(encoder);
}

void require_open(Encoder* encoder) {
  if (encoder->is_ended) host_error("encoding after endEncoding");
}

// The command's place in the order of its encoder.
uint64_t next_group(Encoder* encoder) {
  if (!encoder->is_concurrent) encoder->group = encoder->owner->next_group++;
  return encoder->group;
}

void require_bound(const Command& command) {
  const gpu_kernel* kernel = command.pipeline->kernel;
  const std::string name = gpu_kernel_name(kernel);
  for (uint32_t i = 0; i < gpu_kernel_param_count(kernel); ++i) {
    const gpu_param param = gpu_kernel_param(kernel, i);
    int index;
    if (!param.attribute) continue;
    if (std::sscanf(param.attribute, "buffer(%d)", &index) == 1) {
      const Binding& b = command.bindings[static_cast<size_t>(index)];
      if (!b.buffer && !b.inline_bytes)
        host_error(name + ": buffer(" + std::to_string(index) + ") \"" + param.name + "\" is not set");
    }
    if (std::sscanf(param.attribute, "threadgroup(%d)", &index) == 1 &&
        command.threadgroup_bytes[static_cast<size_t>(index)] == 0)
      host_error(name + ": threadgroup memory " + std::to_string(index) + " has no length");
  }
}

gpu_size narrow(Size s) {
  return {static_cast<uint32_t>(s.width), static_cast<uint32_t>(s.height), static_cast<uint32_t>(s.depth)};
}

void dispatch(Encoder* self, Size grid, Size threads, bool grid_is_threads) {
  require_open(self);
  if (!self->pipeline) host_error("dispatch without a pipeline state");
  const UInteger count = threads.width * threads.height * threads.depth;
  if (count == 0 || count > gpu_kernel_threads_max(self->pipeline->kernel))
    host_error(std::string(gpu_kernel_name(self->pipeline->kernel)) + ": " + std::to_string(count) + " threads per threadgroup");
  if (grid.width * grid.height * grid.depth == 0) host_error("an empty grid");
  Command command;
  command.pipeline = self->pipeline;
  command.bindings = self->bindings;
  command.threadgroup_bytes = self->threadgroup_bytes;
  command.grid = narrow(grid);
  command.threads = narrow(threads);
  command.grid_is_threads = grid_is_threads;
  command.group = next_group(self);
  require_bound(command);
  ++counters().dispatches;
  self->owner->commands.push_back(std::move(command));
}

void set_buffer(Encoder* self, Buffer* buffer, UInteger offset, UInteger index) {
  require_open(self);
  if (index >= GPU_BUFFERS) host_error("setBuffer: index " + std::to_string(index));
  if (buffer && offset >= buffer->bytes) host_error("setBuffer: offset past the end");
  if (buffer) self->owner->hold(buffer);
  self->bindings[index] = {buffer, nullptr, offset};
}

void set_bytes(Encoder* self, const void* bytes, UInteger length, UInteger index) {
  require_open(self);
  if (index >= GPU_BUFFERS) host_error("setBytes: index " + std::to_string(index));
  if (length == 0 || length > 4096) host_error("setBytes: length " + std::to_string(length) + ", allowed are 1 to 4096");
  auto copy = std::make_shared<Buffer>(define_class("FakeInlineBytes"));
  copy->data = static_cast<uint8_t*>(gpu_allocate(length));
  copy->bytes = length;
  copy->release = [data = copy->data, length] { gpu_free(data, length); };
  std::memcpy(copy->data, bytes, length);
  self->bindings[index] = {nullptr, std::move(copy), 0};
}

void end_encoding(Encoder* self, Selector*) {
  if (self->is_ended) host_error("endEncoding twice");
  self->is_ended = true;
  self->owner->open = nullptr;
  self->owner->next_group++;
}

void barrier(Encoder* self) {
  require_open(self);
  self->group = self->owner->next_group++;
}

void commit(CommandBuffer* self, Selector*) {
  if (self->current() != Status::not_enqueued) host_error("commit of a committed command buffer");
  if (self->open) host_error("commit with an open encoder (endEncoding is missing)");
  if (is_chosen_to_fail(++counters().command_buffers)) self->error = "injected by FAKE_METAL_FAIL";
  {
    const std::lock_guard lock(self->mutex);
    self->status = Status::committed;
  }
  const std::lock_guard lock(self->queue->mutex);
  self->queue->committed.emplace_back(self);
  self->queue->changed.notify_all();
}

void wait_until_completed(CommandBuffer* self, Selector*) {
  ++counters().waits;
  if (self->current() == Status::not_enqueued) host_error("waitUntilCompleted before commit");
  const auto is_over = [self] { return self->current() >= Status::completed; };
  if (is_lazy()) return run_until(is_over);
  std::unique_lock lock(self->mutex);
  self->changed.wait(lock, [&] { return self->status >= Status::completed; });
}

CommandBuffer* new_command_buffer(Queue* queue, bool retains) {
  {
    std::unique_lock lock(queue->mutex);
    while (queue->unfinished >= kCommandBuffersMax) {
      if (!is_lazy()) {
        queue->changed.wait(lock);
        continue;
      }
      lock.unlock();
      if (!queue->run_next()) host_error("64 command buffers made and none committed: Metal would block for ever");
      lock.lock();
    }
    ++queue->unfinished;
  }
  auto* made = objc::make<CommandBuffer>("FakeCommandBuffer");
  made->queue = queue;
  made->retains = retains;
  return objc::autoreleased(made);
}

}  // namespace

std::vector<Queue*>& all_queues() {
  static auto* queues = new std::vector<Queue*>;
  return *queues;
}

void run_until(const std::function<bool()>& reached) {
  static auto* one_at_a_time = new std::recursive_mutex;
  const std::lock_guard lock(*one_at_a_time);
  while (!reached()) {
    bool ran = false;
    for (Queue* queue : all_queues()) ran = ran || queue->run_next();
    if (!ran) return;
  }
}

Encoder::~Encoder() {
  if (!is_ended) host_error("an encoder was released without endEncoding");
}

CommandBuffer::~CommandBuffer() {
  if (status == Status::not_enqueued) queue->note_finished();
}

Status CommandBuffer::current() {
  const std::lock_guard lock(mutex);
  return status;
}

void CommandBuffer::hold(Buffer* buffer) {
  if (retains) retained.emplace_back(buffer);
}

void CommandBuffer::run() {
  const objc::AutoreleasePool pool;
  if (error.empty()) {
    for (const Command* command : in_adverse_order(commands)) {
      error = run_command(*this, *command);
      if (!error.empty()) break;
    }
  }
  commands.clear();
  retained.clear();
  {
    const std::lock_guard lock(mutex);
    status = error.empty() ? Status::completed : Status::error;
  }
  queue->note_finished();
  for (void* handler : completed_handlers) {
    reinterpret_cast<void (^)(void*)>(handler)(this);
    _Block_release(handler);
  }
  completed_handlers.clear();
  const std::lock_guard lock(mutex);
  changed.notify_all();
}

void Queue::note_finished() {
  const std::lock_guard lock(mutex);
  --unfinished;
  changed.notify_all();
}

bool Queue::run_next() {
  Ref<CommandBuffer> next;
  {
    const std::lock_guard lock(mutex);
    if (committed.empty()) return false;
    next = std::move(committed.front());
    committed.pop_front();
  }
  next->run();
  return true;
}

void Queue::work() {
  for (;;) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return !committed.empty(); });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(setting("FAKE_METAL_DELAY_US", 0)));
    run_next();
  }
}

static void define_encoders() {
  Class* compute = define_class("FakeComputeEncoder");
  add_method(compute, "setComputePipelineState:", [](Encoder* self, Selector*, Pipeline* pipeline) {
    require_open(self);
    self->pipeline = Ref<Pipeline>(pipeline);
  });
  add_method(compute, "setBuffer:offset:atIndex:",
             [](Encoder* self, Selector*, Buffer* buffer, UInteger offset, UInteger index) { set_buffer(self, buffer, offset, index); });
  add_method(compute, "setBytes:length:atIndex:",
             [](Encoder* self, Selector*, const void* bytes, UInteger length, UInteger index) { set_bytes(self, bytes, length, index); });
  add_method(compute, "setThreadgroupMemoryLength:atIndex:",
             [](Encoder* self, Selector*, UInteger bytes, UInteger index) {
               require_open(self);
               if (bytes % 16 || bytes > GPU_THREADGROUP_BYTES_MAX || index >= GPU_BUFFERS)
                 host_error("setThreadgroupMemoryLength: " + std::to_string(bytes) + " bytes at " + std::to_string(index));
               self->threadgroup_bytes[index] = static_cast<uint32_t>(bytes);
             });
  add_method(compute, "memoryBarrierWithScope:", [](Encoder* self, Selector*, UInteger) { barrier(self); });
  add_method(compute, "dispatchThreadgroups:threadsPerThreadgroup:",
             [](Encoder* self, Selector*, Size grid, Size threads) { dispatch(self, grid, threads, false); });
  add_method(compute, "dispatchThreads:threadsPerThreadgroup:",
             [](Encoder* self, Selector*, Size grid, Size threads) { dispatch(self, grid, threads, true); });
  add_method(compute, "endEncoding", end_encoding);
  add_method(compute, "setLabel:", [](Encoder*, Selector*, void*) {});

  Class* blit = define_class("FakeBlitEncoder");
  add_method(blit, "endEncoding", end_encoding);
  add_method(blit, "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:",
             [](Encoder* self, Selector*, Buffer* source, UInteger source_offset, Buffer* target, UInteger target_offset,
                UInteger bytes) {
               require_open(self);
               if (source_offset + bytes > source->bytes || target_offset + bytes > target->bytes)
                 host_error("copyFromBuffer: past the end");
               Command command;
               command.kind = Command::Kind::copy;
               command.source = source;
               command.target = target;
               command.source_offset = source_offset;
               command.target_offset = target_offset;
               command.bytes = bytes;
               command.group = next_group(self);
               self->owner->hold(source);
               self->owner->hold(target);
               ++counters().blits;
               self->owner->commands.push_back(std::move(command));
             });
}

void define_command_classes() {
  define_encoders();
  Class* queue = define_class("FakeQueue");
  add_method(queue, "commandBuffer", [](Queue* self, Selector*) { return new_command_buffer(self, true); });
  add_method(queue, "commandBufferWithUnretainedReferences",
             [](Queue* self, Selector*) { return new_command_buffer(self, false); });
  add_method(queue, "setLabel:", [](Queue*, Selector*, void*) {});

  Class* commands = define_class("FakeCommandBuffer");
  add_method(commands, "computeCommandEncoder",
             [](CommandBuffer* self, Selector*) { return new_encoder(self, "FakeComputeEncoder", false); });
  add_method(commands, "computeCommandEncoderWithDispatchType:", [](CommandBuffer* self, Selector*, UInteger type) {
    return new_encoder(self, "FakeComputeEncoder", type == 1);
  });
  add_method(commands, "blitCommandEncoder",
             [](CommandBuffer* self, Selector*) { return new_encoder(self, "FakeBlitEncoder", false); });
  add_method(commands, "encodeSignalEvent:value:", [](CommandBuffer* self, Selector*, SharedEvent* event, uint64_t value) {
    if (self->current() != Status::not_enqueued) host_error("encodeSignalEvent on a committed command buffer");
    if (self->open) host_error("encodeSignalEvent while an encoder is open");
    Command command;
    command.kind = Command::Kind::signal;
    command.event = Ref<SharedEvent>(event);
    command.value = value;
    command.group = self->next_group++;
    self->commands.push_back(std::move(command));
  });
  add_method(commands, "commit", commit);
  add_method(commands, "waitUntilCompleted", wait_until_completed);
  add_method(commands, "addCompletedHandler:", [](CommandBuffer* self, Selector*, void* handler) {
    if (self->current() != Status::not_enqueued) host_error("addCompletedHandler after commit");
    self->completed_handlers.push_back(_Block_copy(handler));
  });
  add_method(commands, "status", [](CommandBuffer* self, Selector*) { return static_cast<UInteger>(self->current()); });
  add_method(commands, "error", [](CommandBuffer* self, Selector*) -> Object* {
    return self->current() == Status::error ? objc::new_error(self->error) : nullptr;
  });
  add_method(commands, "setLabel:", [](CommandBuffer*, Selector*, void*) {});
}

}  // namespace fake
