// One mistake of host code for each name; test_fake_metal.py says how each is to be found. "right" makes none.
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr unsigned kCount = 96;

const char* const kSource = R"(
#include <metal_stdlib>
using namespace metal;
kernel void twice(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  uint i [[thread_position_in_grid]]) {
  y[i] = 2.0f * x[i];
}
kernel void turned(const device float* x [[buffer(0)]], device float* y [[buffer(1)]], constant uint& n [[buffer(2)]],
                   uint i [[thread_position_in_grid]]) {
  y[i] = x[n - 1u - i];
}
)";

struct Machine {
  id<MTLDevice> device = MTLCreateSystemDefaultDevice();
  id<MTLCommandQueue> queue = [device newCommandQueue];
  id<MTLLibrary> library;
  id<MTLBuffer> x, middle, y;

  explicit Machine(bool safe = true, const char* source = kSource) {
    MTLCompileOptions* options = [MTLCompileOptions new];
    if (safe) options.mathMode = MTLMathModeSafe;
    NSError* error = nil;
    library = [device newLibraryWithSource:[NSString stringWithUTF8String:source] options:options error:&error];
    if (!library) {
      std::printf("library: %s\n", error.localizedDescription.UTF8String);
      std::exit(3);
    }
    const std::vector<float> values = [] {
      std::vector<float> v(kCount);
      for (unsigned i = 0; i < kCount; ++i) v[i] = static_cast<float>(i);
      return v;
    }();
    x = [device newBufferWithBytes:values.data() length:kCount * 4 options:MTLResourceStorageModeShared];
    middle = [device newBufferWithLength:kCount * 4 options:MTLResourceStorageModeShared];
    y = [device newBufferWithLength:kCount * 4 options:MTLResourceStorageModeShared];
  }

  id<MTLComputePipelineState> pipeline(NSString* name) {
    NSError* error = nil;
    return [device newComputePipelineStateWithFunction:[library newFunctionWithName:name] error:&error];
  }

  // y = the doubled x, turned round, in a concurrent encoder.
  void encode(id<MTLComputeCommandEncoder> e, bool with_barrier = true, bool with_count = true) {
    [e setComputePipelineState:pipeline(@"twice")];
    [e setBuffer:x offset:0 atIndex:0];
    [e setBuffer:middle offset:0 atIndex:1];
    [e dispatchThreads:MTLSizeMake(kCount, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
    if (with_barrier) [e memoryBarrierWithScope:MTLBarrierScopeBuffers];
    [e setComputePipelineState:pipeline(@"turned")];
    [e setBuffer:middle offset:0 atIndex:0];
    [e setBuffer:y offset:0 atIndex:1];
    if (with_count) [e setBytes:&kCount length:4 atIndex:2];
    [e dispatchThreads:MTLSizeMake(kCount, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
  }

  bool is_right() const {
    const float* values = static_cast<const float*>(y.contents);
    for (unsigned i = 0; i < kCount; ++i)
      if (!(values[i] == 2.0f * static_cast<float>(kCount - 1 - i))) return false;
    return true;
  }
};

id<MTLComputeCommandEncoder> concurrent(id<MTLCommandBuffer> commands) {
  return [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
}

int run(bool with_barrier, bool with_wait, bool with_count = true) {
  Machine m;
  id<MTLCommandBuffer> commands = [m.queue commandBuffer];
  id<MTLComputeCommandEncoder> e = concurrent(commands);
  m.encode(e, with_barrier, with_count);
  [e endEncoding];
  [commands commit];
  if (with_wait) [commands waitUntilCompleted];
  if (commands.error) {
    std::printf("command buffer: %s\n", commands.error.localizedDescription.UTF8String);
    return 4;
  }
  const bool is_right = m.is_right();
  std::printf("%s\n", is_right ? "right" : "wrong result");
  if (!with_wait) [commands waitUntilCompleted];
  return is_right ? 0 : 5;
}

int run_with_event(bool with_signal) {
  Machine m;
  id<MTLSharedEvent> event = [m.device newSharedEvent];
  id<MTLCommandBuffer> commands = [m.queue commandBuffer];
  id<MTLComputeCommandEncoder> e = concurrent(commands);
  m.encode(e);
  [e endEncoding];
  if (with_signal) [commands encodeSignalEvent:event value:7];
  [commands commit];
  const bool reached = [event waitUntilSignaledValue:7 timeoutMS:2000];
  std::printf("%s\n", reached && m.is_right() ? "right" : "event not reached");
  [commands waitUntilCompleted];
  return reached && m.is_right() ? 0 : 5;
}

int free_early() {
  Machine m;
  id<MTLCommandBuffer> commands = [m.queue commandBufferWithUnretainedReferences];
  id<MTLComputeCommandEncoder> e = concurrent(commands);
  m.encode(e);
  [e endEncoding];
  m.middle = nil;
  [commands commit];
  [commands waitUntilCompleted];
  return 0;
}

int use_freed_object() {
  Machine m;
  __unsafe_unretained id<MTLBuffer> gone;
  {
    id<MTLBuffer> buffer = [m.device newBufferWithLength:16 options:MTLResourceStorageModeShared];
    gone = buffer;
  }
  return gone.length == 16 ? 0 : 1;
}

int leak() {
  Machine m;
  return 0;
}

int misuse(const std::string& name) {
  Machine m;
  id<MTLCommandBuffer> commands = [m.queue commandBuffer];
  id<MTLComputeCommandEncoder> e = concurrent(commands);
  const std::map<std::string, std::function<void()>> all = {
      {"second_encoder", [&] { (void)concurrent(commands); }},
      {"open_at_commit", [&] { [commands commit]; }},
      {"never_ended", [&] { e = nil; }},
      {"encoding_after_end", [&] { [e endEncoding]; m.encode(e); }},
      {"commit_twice", [&] { [e endEncoding]; [commands commit]; [commands commit]; }},
      {"wait_before_commit", [&] { [e endEncoding]; [commands waitUntilCompleted]; }},
      {"handler_after_commit",
       [&] { [e endEncoding]; [commands commit]; [commands addCompletedHandler:^(id<MTLCommandBuffer>) {}]; }},
      {"no_pipeline",
       [&] { [e dispatchThreads:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(1, 1, 1)]; }},
      {"too_many_threads",
       [&] {
         m.encode(e);
         [e dispatchThreads:MTLSizeMake(4096, 1, 1) threadsPerThreadgroup:MTLSizeMake(2048, 1, 1)];
       }},
      {"empty_grid",
       [&] {
         m.encode(e);
         [e dispatchThreads:MTLSizeMake(0, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
       }},
      {"offset_past_end", [&] { [e setBuffer:m.x offset:kCount * 4 atIndex:0]; }},
      {"index_past_30", [&] { [e setBuffer:m.x offset:0 atIndex:31]; }},
      {"long_bytes", [&] { [e setBytes:kSource length:4097 atIndex:0]; }},
      {"misaligned_no_copy",
       [&] {
         alignas(16384) static char memory[32768];
         (void)[m.device newBufferWithBytesNoCopy:memory + 4096
                                           length:16384
                                          options:MTLResourceStorageModeShared
                                      deallocator:nil];
       }},
      {"empty_buffer", [&] { (void)[m.device newBufferWithLength:0 options:MTLResourceStorageModeShared]; }},
  };
  const auto at = all.find(name);
  if (at == all.end()) return 2;
  @autoreleasepool {
    at->second();
  }
  return 0;
}

int run_case(const std::string& name) {
  if (name == "right") return run(true, true);
  if (name == "missing_barrier") return run(false, true);
  if (name == "missing_wait") return run(true, false);
  if (name == "unbound") return run(true, true, false);
  if (name == "event") return run_with_event(true);
  if (name == "event_never_signalled") return run_with_event(false);
  if (name == "freed_early") return free_early();
  if (name == "freed_object") return use_freed_object();
  if (name == "fast_maths") return Machine(false), 0;
  if (name == "broken_source") return Machine(true, "kernel void f(device float* x [[buffer(0)]]) { x[0] = y; }"), 0;
  if (name == "leak") return leak();
  return misuse(name);
}

}  // namespace

extern "C" int64_t objc_live_count(const char* class_name);

int main(int argc, char** argv) {
  int code = 2;
  @autoreleasepool {
    code = run_case(argc > 1 ? argv[1] : "right");
  }
  if (code == 0) std::printf("buffers left: %lld\n", static_cast<long long>(objc_live_count("FakeBuffer")));
  std::fflush(stdout);
  return code;
}
