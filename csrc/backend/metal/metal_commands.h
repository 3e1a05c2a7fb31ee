#pragma once
// What the GPU is told: one command buffer that is being encoded, those committed, and waiting for them. Included by
// Objective-C++ with ARC only.
//
// DESIGN. Dispatches of one command buffer run in any order unless `barrier` stands between them; command buffers run in the
// order of their commits. Each commit has a number, and the GPU raises one shared event to it at its end: the host waits
// for a number, never for a command buffer. A command buffer that fails does not raise the event; its handler leaves the
// reason, which the next wait throws after everything in flight has ended.

#import <Metal/Metal.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "backend/metal/metal_device.h"
#include "backend/metal/metal_memory.h"

namespace flash_moe::backend {

struct MetalGrid {
  size_t x = 1, y = 1, z = 1;
};

// Thread-compatible.
class MetalCommands {
 public:
  explicit MetalCommands(std::shared_ptr<MetalDevice> device);
  ~MetalCommands();
  MetalCommands(const MetalCommands&) = delete;
  MetalCommands& operator=(const MetalCommands&) = delete;

  MetalDevice& device() { return *device_; }

  // Encoding; the first call opens a command buffer. Bindings hold until they are replaced.
  void use(MetalPipeline pipeline);
  void bind(unsigned index, MetalBuffer buffer, size_t offset = 0);
  void bind(unsigned index, const MetalPlace& place) { bind(index, place.buffer, place.offset); }
  // Copies; any length.
  void bind_bytes(unsigned index, const void* bytes, size_t length);
  template <typename Args>
  void bind_args(unsigned index, const Args& args) {
    bind_bytes(index, &args, sizeof(Args));
  }
  void dispatch_groups(MetalGrid groups, size_t threads);
  void dispatch_threads(MetalGrid threads, MetalGrid group);
  // What follows sees what came before. Free when nothing came since the last one.
  void barrier();

  // Hands what is encoded to the GPU and returns its number: that of the last commit where nothing is encoded.
  uint64_t commit();
  // Returns when everything up to that number has run. Throws DeviceError where any of it failed.
  void wait(uint64_t number);
  void finish() { wait(commit()); }
  // Drops what is encoded and not committed.
  void abandon();

 private:
  struct Outcome {
    std::mutex mutex;
    std::string error;
  };

  void open();
  void close_encoder();
  void throw_failure();

  std::shared_ptr<MetalDevice> device_;
  id<MTLSharedEvent> event_;
  id<MTLCommandBuffer> commands_;
  id<MTLComputeCommandEncoder> encoder_;
  id<MTLCommandBuffer> last_;  // committed
  uint64_t committed_ = 0;
  bool has_dispatches_ = false;  // since the last barrier
  std::shared_ptr<Outcome> outcome_ = std::make_shared<Outcome>();
};

}  // namespace flash_moe::backend
