#import "backend/metal/metal_device.h"

#include <cstring>

#include "backend/metal/metal_kernels.h"
#include "flash_moe/error.h"

#if !__has_feature(objc_arc)
#error "compile with -fobjc-arc"
#endif

namespace flash_moe::backend {
namespace {

std::string text_of(NSError* error) {
  return error ? std::string(error.localizedDescription.UTF8String) : std::string("no reason given");
}

NSString* to_string(const char* text) { return [NSString stringWithUTF8String:text]; }

bool is_boolean(metal::FunctionConstant index) {
  return index == metal::constant_kv_is_bf16 || index == metal::constant_attention_gate;
}

}  // namespace

std::string metal_device_reason() {
  @autoreleasepool {
    id<MTLDevice> device = MTLCreateSystemDefaultDevice();
    if (!device) return "this machine has no Metal device";
    // Simdgroup sums and matrices, and memory shared with the processor.
    if (![device supportsFamily:MTLGPUFamilyApple7] || !device.hasUnifiedMemory)
      return std::string(device.name.UTF8String) + " is no Apple GPU of family 7 (M1) or later";
    return "";
  }
}

MetalDevice::MetalDevice() {
  @autoreleasepool {
    if (const std::string reason = metal_device_reason(); !reason.empty()) throw DeviceError("backend=\"metal\": " + reason);
    device_ = MTLCreateSystemDefaultDevice();
    queue_ = [device_ newCommandQueue];
    if (!queue_) throw DeviceError("Metal: no command queue");
    if (load_metallib()) return;
    for (const MetalSource* source = kMetalSources; source->file_name; ++source)
      libraries_.push_back(compile_source(source->file_name, source->text));
  }
}

std::string MetalDevice::name() const {
  @autoreleasepool {
    return device_.name.UTF8String;
  }
}

// A metallib for a newer system than this one is refused here; the sources then do.
bool MetalDevice::load_metallib() {
  if (kMetalLibraryBytes == 0) return false;
  NSError* error = nil;
  dispatch_data_t data = dispatch_data_create(kMetalLibrary, kMetalLibraryBytes, nullptr, DISPATCH_DATA_DESTRUCTOR_DEFAULT);
  id<MTLLibrary> library = [device_ newLibraryWithData:data error:&error];
  if (library) libraries_.push_back(library);
  return library != nil;
}

id<MTLLibrary> MetalDevice::compile_source(const char* file_name, const char* text) {
  MTLCompileOptions* options = [MTLCompileOptions new];
  options.languageVersion = MTLLanguageVersion3_1;
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"
#pragma clang diagnostic ignored "-Wunknown-warning-option"
#pragma clang diagnostic ignored "-Wunguarded-availability-new"
#endif
  if ([options respondsToSelector:@selector(setMathMode:)]) {
    options.mathMode = MTLMathModeSafe;
  } else {
    options.fastMathEnabled = NO;
  }
#if defined(__clang__)
#pragma clang diagnostic pop
#endif
  NSError* error = nil;
  id<MTLLibrary> library = [device_ newLibraryWithSource:to_string(text) options:options error:&error];
  if (!library) throw DeviceError(std::string("Metal does not compile ") + file_name + ": " + text_of(error));
  return library;
}

id<MTLFunction> MetalDevice::find_function(const char* kernel, MTLFunctionConstantValues* values) {
  NSError* error = nil;
  for (id<MTLLibrary> library : libraries_) {
    NSError* failed = nil;
    id<MTLFunction> function = [library newFunctionWithName:to_string(kernel) constantValues:values error:&failed];
    if (function) return function;
    error = failed;
  }
  throw DeviceError(std::string("Metal: no function ") + kernel + ": " + text_of(error));
}

MetalPipeline MetalDevice::pipeline(const char* kernel, std::initializer_list<MetalConstant> constants) {
  std::string key = kernel;
  for (const MetalConstant& c : constants) key += "/" + std::to_string(c.index) + "=" + std::to_string(c.value);
  if (const auto at = pipelines_.find(key); at != pipelines_.end()) return at->second;
  @autoreleasepool {
    MTLFunctionConstantValues* values = [MTLFunctionConstantValues new];
    for (const MetalConstant& c : constants) {
      const bool flag = c.value != 0;
      if (is_boolean(c.index)) {
        [values setConstantValue:&flag type:MTLDataTypeBool atIndex:c.index];
      } else {
        [values setConstantValue:&c.value type:MTLDataTypeUInt atIndex:c.index];
      }
    }
    NSError* error = nil;
    MetalPipeline made = [device_ newComputePipelineStateWithFunction:find_function(kernel, values) error:&error];
    if (!made) throw DeviceError("Metal: no pipeline for " + key + ": " + text_of(error));
    pipelines_[key] = made;
    return made;
  }
}

MetalBuffer MetalDevice::new_buffer(size_t bytes) {
  MetalBuffer buffer = [device_ newBufferWithLength:bytes options:MTLResourceStorageModeShared];
  if (!buffer)
    throw DeviceError("Metal: wanted a buffer of " + std::to_string(bytes) + " bytes and got none; the device allows " +
                      std::to_string(buffer_bytes_max()) + " and may be out of memory");
  std::memset(buffer.contents, 0, bytes);
  return buffer;
}

}  // namespace flash_moe::backend
