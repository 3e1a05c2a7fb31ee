// Device, buffers, events, libraries and pipelines.
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <Block.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>
#include <unordered_set>

#include "fake_metal.h"
#include "gcd.h"

namespace fake {

using objc::add_class_method;
using objc::add_method;
using objc::Class;
using objc::define_class;
using objc::Object;

void host_error(const std::string& what) { objc::fail("host error: " + what); }

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

bool is_lazy() {
  const char* text = std::getenv("FAKE_METAL_RUN");
  return text && std::string(text) == "lazy";
}

gpu_order order() {
  const char* text = std::getenv("FAKE_METAL_ORDER");
  if (!text) return GPU_FORWARD;
  return std::string(text) == "reverse" ? GPU_REVERSE : GPU_SHUFFLED;
}

Counters& counters() {
  static auto* c = new Counters;
  return *c;
}

namespace {

std::mutex& live_mutex() {
  static auto* m = new std::mutex;
  return *m;
}
std::unordered_set<const Buffer*>& live_buffers() {
  static auto* s = new std::unordered_set<const Buffer*>;
  return *s;
}

Buffer* new_buffer(uint8_t* data, size_t bytes, UInteger options, std::function<void()> release) {
  auto* buffer = objc::make<Buffer>("FakeBuffer");
  buffer->data = data;
  buffer->bytes = bytes;
  buffer->is_private = ((options >> 4) & 15) == 2;
  buffer->release = std::move(release);
  const std::lock_guard lock(live_mutex());
  live_buffers().insert(buffer);
  return buffer;
}

Buffer* allocate(size_t bytes, UInteger options) {
  if (bytes == 0) host_error("newBuffer of length 0");
  if (bytes > setting("FAKE_METAL_MAX_BUFFER", uint64_t{8} << 30)) return nullptr;
  auto* data = static_cast<uint8_t*>(gpu_allocate(bytes));
  if (!data) return nullptr;
  return new_buffer(data, bytes, options, [=] { gpu_free(data, bytes); });
}

Buffer* wrap(void* memory, size_t bytes, UInteger options, void (^deallocator)(void*, UInteger)) {
  if (reinterpret_cast<uintptr_t>(memory) % kPageBytes || bytes % kPageBytes || bytes == 0)
    host_error("newBufferWithBytesNoCopy: address and length must be multiples of " + std::to_string(kPageBytes));
  if (bytes > setting("FAKE_METAL_MAX_BUFFER", uint64_t{8} << 30)) return nullptr;
  const void* block = deallocator ? _Block_copy(reinterpret_cast<const void*>(deallocator)) : nullptr;
  return new_buffer(static_cast<uint8_t*>(memory), bytes, options, [=] {
    if (!block) return;
    reinterpret_cast<void (^)(void*, UInteger)>(const_cast<void*>(block))(memory, bytes);
    _Block_release(block);
  });
}

// FNV-1a, which build.py computes too: images made for the kernels' own tests are laid where they are looked for.
uint64_t mark_of(const std::string& text) {
  uint64_t hash = 14695981039346656037ull;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return hash;
}

// Images look for the rig's functions among those that all can see, which a library that Python loaded is not.
void show_rig() {
  Dl_info found;
  if (dladdr(reinterpret_cast<void*>(&gpu_image_open), &found)) dlopen(found.dli_fname, RTLD_NOW | RTLD_GLOBAL);
}

// Compiles once per source, in a folder that the environment names.
gpu_image* compile(const std::string& source, std::string& error) {
  static auto* images = new std::map<std::string, gpu_image*>;
  static auto* mutex = new std::mutex;
  const std::lock_guard lock(*mutex);
  if (const auto at = images->find(source); at != images->end()) return at->second;
  const char* compiler = std::getenv("FAKE_METAL_COMPILER");  // a command: source, then image
  const char* folder = std::getenv("FAKE_METAL_CACHE");
  if (!compiler || !folder) host_error("FAKE_METAL_COMPILER and FAKE_METAL_CACHE must be set");
  const std::string stem = std::string(folder) + "/" + std::to_string(mark_of(source));
  const std::string image = stem + ".so";
  struct stat found;
  if (::stat(image.c_str(), &found) != 0) {
    const std::string own = stem + "." + std::to_string(::getpid());
    std::ofstream(own + ".metal") << source;
    const std::string command = std::string(compiler) + " " + own + ".metal " + own + ".so > " + own + ".log 2>&1";
    if (std::system(command.c_str()) != 0) {
      std::stringstream log;
      log << std::ifstream(own + ".log").rdbuf();
      error = log.str();
      return nullptr;
    }
    std::rename((own + ".so").c_str(), image.c_str());
  }
  show_rig();
  char message[1024];
  gpu_image* opened = gpu_image_open(image.c_str(), message, sizeof message);
  if (!opened) error = message;
  if (opened) (*images)[source] = opened;
  return opened;
}

bool wait_for(SharedEvent* event, uint64_t value, uint64_t timeout_ms) {
  ++counters().waits;
  const auto reached = [=] {
    const std::lock_guard lock(event->mutex);
    return event->value >= value;
  };
  if (is_lazy()) {
    run_until(reached);
    return reached();
  }
  std::unique_lock lock(event->mutex);
  return event->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return event->value >= value; });
}

Queue* new_queue(Object*, Selector*) {
  auto* queue = objc::make<Queue>("FakeQueue");
  objc::objc_retain(queue);  // its thread stays
  all_queues().push_back(queue);
  if (!is_lazy()) std::thread([queue] { queue->work(); }).detach();
  return queue;
}

Function* find_function(Library* self, const void* name) {
  const gpu_kernel* kernel = gpu_image_find(self->image, objc::text_of(name).c_str());
  if (!kernel) return nullptr;
  auto* function = objc::make<Function>("FakeFunction");
  function->kernel = kernel;
  return function;
}

void write_stats() {
  const char* path = std::getenv("FAKE_METAL_STATS");
  if (!path) return;
  Counters& c = counters();
  std::ofstream(path) << "{\"command_buffers\": " << c.command_buffers << ", \"dispatches\": " << c.dispatches
                      << ", \"blits\": " << c.blits << ", \"waits\": " << c.waits << "}\n";
}

}  // namespace

Buffer::~Buffer() {
  if (data) {
    const std::lock_guard lock(live_mutex());
    live_buffers().erase(this);
  }
  if (release) release();
}

bool is_live(const Buffer* buffer) {
  const std::lock_guard lock(live_mutex());
  return live_buffers().count(buffer) != 0;
}

void SharedEvent::signal(uint64_t to) {
  const std::lock_guard lock(mutex);
  value = to;
  changed.notify_all();
}

void define_device_classes() {
  Class* device = define_class("FakeDevice");
  add_method(device, "name", [](Object*, Selector*) { return objc::new_string("fake device (CPU)"); });
  add_method(device, "hasUnifiedMemory", [](Object*, Selector*) { return true; });
  add_method(device, "maxThreadgroupMemoryLength", [](Object*, Selector*) -> UInteger { return 32768; });
  add_method(device, "supportsFamily:", [](Object*, Selector*, long family) { return family >= 1001 && family <= 1007; });
  add_method(device, "maxBufferLength",
             [](Object*, Selector*) -> UInteger { return setting("FAKE_METAL_MAX_BUFFER", uint64_t{8} << 30); });
  add_method(device, "recommendedMaxWorkingSetSize",
             [](Object*, Selector*) -> uint64_t { return setting("FAKE_METAL_WORKING_SET", uint64_t{16} << 30); });
  add_method(device, "newCommandQueue", new_queue);
  add_method(device, "newSharedEvent", [](Object*, Selector*) { return objc::make<SharedEvent>("FakeSharedEvent"); });
  add_method(device, "newBufferWithLength:options:",
             [](Object*, Selector*, UInteger bytes, UInteger options) { return allocate(bytes, options); });
  add_method(device, "newBufferWithBytes:length:options:",
             [](Object*, Selector*, const void* bytes, UInteger length, UInteger options) {
               Buffer* buffer = allocate(length, options);
               if (buffer) std::memcpy(buffer->data, bytes, length);
               return buffer;
             });
  add_method(device, "newBufferWithBytesNoCopy:length:options:deallocator:",
             [](Object*, Selector*, void* memory, UInteger length, UInteger options,
                void (^deallocator)(void*, UInteger)) { return wrap(memory, length, options, deallocator); });
  add_method(device, "newLibraryWithSource:options:error:",
             [](Object*, Selector*, const void* source, CompileOptions* options, Object** error) -> Library* {
               if (!options || !options->is_safe) host_error("newLibraryWithSource: the default is fast maths; ask for safe");
               std::string message;
               gpu_image* image = compile(objc::text_of(source), message);
               if (!image && error) *error = objc::new_error(message);
               if (!image) return nullptr;
               auto* library = objc::make<Library>("FakeLibrary");
               library->image = image;
               return library;
             });
  add_method(device, "newLibraryWithData:error:", [](Object*, Selector*, DispatchData*, Object** error) -> Library* {
    if (error) *error = objc::new_error("this is no metallib that a fake device can read");
    return nullptr;
  });
  add_method(device, "newComputePipelineStateWithFunction:error:", [](Object*, Selector*, Function* function, Object**) {
    auto* pipeline = objc::make<Pipeline>("FakePipeline");
    pipeline->kernel = function->kernel;
    pipeline->constants = function->constants;
    return pipeline;
  });

  Class* buffer = define_class("FakeBuffer");
  add_method(buffer, "contents", [](Buffer* self, Selector*) { return self->is_private ? nullptr : self->data; });
  add_method(buffer, "length", [](Buffer* self, Selector*) -> UInteger { return self->bytes; });
  add_method(buffer, "setLabel:", [](Buffer*, Selector*, void*) {});

  Class* event = define_class("FakeSharedEvent");
  add_method(event, "signaledValue", [](SharedEvent* self, Selector*) {
    const std::lock_guard lock(self->mutex);
    return self->value;
  });
  add_method(event, "setSignaledValue:", [](SharedEvent* self, Selector*, uint64_t to) { self->signal(to); });
  add_method(event, "waitUntilSignaledValue:timeoutMS:",
             [](SharedEvent* self, Selector*, uint64_t value, uint64_t ms) { return wait_for(self, value, ms); });
  std::atexit(write_stats);
}

void define_library_classes() {
  Class* library = define_class("FakeLibrary");
  add_method(library, "newFunctionWithName:",
             [](Library* self, Selector*, const void* name) { return find_function(self, name); });
  add_method(library, "newFunctionWithName:constantValues:error:",
             [](Library* self, Selector*, const void* name, ConstantValues* values, Object** error) {
               Function* function = find_function(self, name);
               if (function) function->constants = values->values;
               if (!function && error) *error = objc::new_error("no function " + objc::text_of(name));
               return function;
             });

  Class* values = define_class("MTLFunctionConstantValues");
  values->make = [](Class* c) -> Object* { return objc::make<ConstantValues>(c); };
  add_method(values, "setConstantValue:type:atIndex:",
             [](ConstantValues* self, Selector*, const void* value, UInteger type, UInteger index) {
               constexpr UInteger kBool = 53, kUInt = 33;
               if (type != kBool && type != kUInt) host_error("setConstantValue: type " + std::to_string(type));
               Constant constant{static_cast<uint32_t>(index), type == kBool ? 1u : 4u, 0};
               std::memcpy(&constant.value, value, constant.bytes);
               self->values.push_back(constant);
             });

  Class* options = define_class("MTLCompileOptions");
  options->make = [](Class* c) -> Object* { return objc::make<CompileOptions>(c); };
  add_method(options, "setLanguageVersion:", [](CompileOptions*, Selector*, UInteger) {});
  add_method(options, "setMathMode:", [](CompileOptions* self, Selector*, long mode) { self->is_safe = mode == 0; });
  add_method(options, "setFastMathEnabled:", [](CompileOptions* self, Selector*, bool on) { self->is_safe = !on; });

  Class* pipeline = define_class("FakePipeline");
  add_method(pipeline, "maxTotalThreadsPerThreadgroup",
             [](Pipeline* self, Selector*) -> UInteger { return gpu_kernel_threads_max(self->kernel); });
  add_method(pipeline, "threadExecutionWidth", [](Pipeline*, Selector*) -> UInteger { return GPU_SIMD_WIDTH; });
}

__attribute__((constructor)) static void define_classes() {
  define_device_classes();
  define_library_classes();
  define_command_classes();
}

}  // namespace fake

OBJC_CLASS_REFERENCE(MTLCompileOptions)
OBJC_CLASS_REFERENCE(MTLFunctionConstantValues)

extern "C" objc::Object* MTLCreateSystemDefaultDevice() { return objc::make<objc::Object>("FakeDevice"); }
