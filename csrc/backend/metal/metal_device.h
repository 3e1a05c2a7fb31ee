#pragma once
// The GPU, its queue, the compiled kernels and pipelines specialised from them. Included by Objective-C++ with ARC only.
//
// Kernels come as a metallib where the build made one, else as sources that are compiled when the first pipeline of a file is
// wanted; maths is safe in both (no reassociation, infinities and NaN kept), as the tolerances assume.

#import <Metal/Metal.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "metal/args.h"

namespace flash_moe::backend {

using MetalBuffer = id<MTLBuffer>;
using MetalPipeline = id<MTLComputePipelineState>;

struct MetalConstant {
  metal::FunctionConstant index;
  uint32_t value;  // 0 or 1 for the boolean ones
};

// Thread-compatible.
class MetalDevice {
 public:
  MetalDevice();  // throws DeviceError

  id<MTLDevice> device() const { return device_; }
  id<MTLCommandQueue> queue() const { return queue_; }
  size_t buffer_bytes_max() const { return static_cast<size_t>(device_.maxBufferLength); }
  std::string name() const;

  // Specialises a kernel once for each set of constants. Throws DeviceError with the compiler's words.
  MetalPipeline pipeline(const char* kernel, std::initializer_list<MetalConstant> constants = {});
  // Zero-filled, of both processors. Throws DeviceError.
  MetalBuffer new_buffer(size_t bytes);

 private:
  id<MTLFunction> find_function(const char* kernel, MTLFunctionConstantValues* values);
  bool load_metallib();
  id<MTLLibrary> compile_source(const char* file_name, const char* text);

  id<MTLDevice> device_;
  id<MTLCommandQueue> queue_;
  std::vector<id<MTLLibrary>> libraries_;
  std::map<std::string, MetalPipeline> pipelines_;
};

// Empty when this machine's GPU runs the kernels, else why not.
std::string metal_device_reason();

}  // namespace flash_moe::backend
