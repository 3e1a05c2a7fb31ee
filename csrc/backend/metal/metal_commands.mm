#import "backend/metal/metal_commands.h"

#include <utility>

#include "flash_moe/error.h"

namespace flash_moe::backend {
namespace {

constexpr size_t kInlineBytesMax = 4096;  // Metal's limit for setBytes
constexpr uint64_t kPollMs = 200;         // between looks at failures while waiting

MTLSize to_size(MetalGrid grid) { return MTLSizeMake(grid.x, grid.y, grid.z); }

}  // namespace

MetalCommands::MetalCommands(std::shared_ptr<MetalDevice> device) : device_(std::move(device)) {
  event_ = [device_->device() newSharedEvent];
  if (!event_) throw DeviceError("Metal: no shared event");
}

MetalCommands::~MetalCommands() {
  abandon();
  if (last_) [last_ waitUntilCompleted];
}

void MetalCommands::open() {
  if (encoder_) return;
  @autoreleasepool {
    commands_ = [device_->queue() commandBuffer];
    encoder_ = [commands_ computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (!encoder_) throw DeviceError("Metal: no command encoder");
  }
  has_dispatches_ = false;
}

void MetalCommands::close_encoder() {
  if (encoder_) [encoder_ endEncoding];
  encoder_ = nil;
}

void MetalCommands::use(MetalPipeline pipeline) {
  open();
  [encoder_ setComputePipelineState:pipeline];
}

void MetalCommands::bind(unsigned index, MetalBuffer buffer, size_t offset) {
  [encoder_ setBuffer:buffer offset:offset atIndex:index];
}

void MetalCommands::bind_bytes(unsigned index, const void* bytes, size_t length) {
  if (length <= kInlineBytesMax) {
    [encoder_ setBytes:bytes length:length atIndex:index];
    return;
  }
  // Only wide steps come here. The command buffer keeps it.
  id<MTLBuffer> copy = [device_->device() newBufferWithBytes:bytes length:length options:MTLResourceStorageModeShared];
  if (!copy) throw DeviceError("Metal: no buffer for " + std::to_string(length) + " bytes of arguments");
  [encoder_ setBuffer:copy offset:0 atIndex:index];
}

void MetalCommands::dispatch_groups(MetalGrid groups, size_t threads) {
  [encoder_ dispatchThreadgroups:to_size(groups) threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
  has_dispatches_ = true;
}

void MetalCommands::dispatch_threads(MetalGrid threads, MetalGrid group) {
  [encoder_ dispatchThreads:to_size(threads) threadsPerThreadgroup:to_size(group)];
  has_dispatches_ = true;
}

void MetalCommands::barrier() {
  if (has_dispatches_) [encoder_ memoryBarrierWithScope:MTLBarrierScopeBuffers];
  has_dispatches_ = false;
}

uint64_t MetalCommands::commit() {
  if (!encoder_) return committed_;
  close_encoder();
  has_dispatches_ = false;
  ++committed_;
  @autoreleasepool {
    [commands_ encodeSignalEvent:event_ value:committed_];
    std::shared_ptr<Outcome> outcome = outcome_;
    [commands_ addCompletedHandler:^(id<MTLCommandBuffer> ended) {
      if (ended.status != MTLCommandBufferStatusError) return;
      const std::lock_guard lock(outcome->mutex);
      if (outcome->error.empty())
        outcome->error = ended.error ? ended.error.localizedDescription.UTF8String : "no reason given";
    }];
    [commands_ commit];
  }
  last_ = commands_;
  commands_ = nil;
  return committed_;
}

void MetalCommands::wait(uint64_t number) {
  if (number == 0) return;
  while (![event_ waitUntilSignaledValue:number timeoutMS:kPollMs]) throw_failure();
  // A later command buffer raises the event past one that failed.
  throw_failure();
}

void MetalCommands::throw_failure() {
  {
    const std::lock_guard lock(outcome_->mutex);
    if (outcome_->error.empty()) return;
  }
  abandon();
  if (last_) [last_ waitUntilCompleted];
  const std::lock_guard lock(outcome_->mutex);
  const std::string error = std::exchange(outcome_->error, std::string());
  throw DeviceError("Metal: a command buffer failed: " + error);
}

void MetalCommands::abandon() {
  close_encoder();
  has_dispatches_ = false;
  commands_ = nil;
}

}  // namespace flash_moe::backend
