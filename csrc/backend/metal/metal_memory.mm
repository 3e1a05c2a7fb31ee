#import "backend/metal/metal_memory.h"

#include <algorithm>
#include <limits>

#include "flash_moe/error.h"

namespace flash_moe::backend {
namespace {

// Experts of one step that lie in several chunks cost a dispatch for each; slots never computed with stay unwired.
constexpr size_t kChunkBytesMax = size_t{1} << 30;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t chunk_bytes(size_t slot_bytes, size_t limit) {
  return std::max<size_t>(std::min(kChunkBytesMax, limit) / slot_bytes, 1) * slot_bytes;
}

size_t window_bytes(size_t bytes, size_t limit) {
  return std::min(round_up(std::max<size_t>(bytes, 1), kMetalPageBytes), limit / (2 * kMetalPageBytes) * 2 * kMetalPageBytes);
}

}  // namespace

MetalRegion::MetalRegion(MetalDevice& device, size_t bytes, size_t window_bytes, size_t stride_bytes)
    : device_(device.device()), window_bytes_(window_bytes), stride_bytes_(stride_bytes) {
  bytes_ = round_up(std::max<size_t>(bytes, 1), kMetalPageBytes);
  // The system's page may be smaller than Metal's.
  pages_ = std::make_shared<AlignedMemory>(bytes_ + kMetalPageBytes);
  data_ = pages_->data() + (kMetalPageBytes - reinterpret_cast<uintptr_t>(pages_->data()) % kMetalPageBytes) % kMetalPageBytes;
  windows_.resize((bytes_ + stride_bytes_ - 1) / stride_bytes_);
}

MetalPlace MetalRegion::find(const uint8_t* address, size_t bytes) {
  const auto offset = static_cast<size_t>(address - data_);
  const size_t index = offset / stride_bytes_;
  const size_t inside = offset - index * stride_bytes_;
  if (inside + bytes > window_bytes_)
    throw DeviceError("Metal: a matrix of " + std::to_string(bytes) + " bytes is more than a buffer of this device holds (" +
                      std::to_string(window_bytes_) + ")");
  const std::lock_guard lock(mutex_);
  if (!windows_[index]) windows_[index] = make_window(index);
  return {windows_[index], inside};
}

MetalBuffer MetalRegion::make_window(size_t index) const {
  const size_t begin = index * stride_bytes_;
  const size_t bytes = std::min(window_bytes_, bytes_ - begin);
  std::shared_ptr<AlignedMemory> keep = pages_;
  MetalBuffer buffer = [device_ newBufferWithBytesNoCopy:data_ + begin
                                                  length:bytes
                                                 options:MTLResourceStorageModeShared
                                             deallocator:^(void*, NSUInteger) {
                                               (void)keep;  // the pages go with the last buffer over them
                                             }];
  if (!buffer) throw DeviceError("Metal: no buffer over " + std::to_string(bytes) + " bytes of memory");
  return buffer;
}

// The system may put other pages in place of those given up, which a buffer made before would not see: the next use of the
// chunk makes a new one. Command buffers in flight keep theirs; they do not read this slot.
void MetalRegion::release(size_t offset, size_t bytes) {
  const std::lock_guard lock(mutex_);
  pages_->release(static_cast<size_t>(data_ - pages_->data()) + offset, bytes);
  windows_[offset / stride_bytes_] = nil;
}

void MetalRegion::touch(size_t offset, size_t bytes) {
  pages_->touch(static_cast<size_t>(data_ - pages_->data()) + offset, bytes);
}

void MetalRegions::add(const std::shared_ptr<MetalRegion>& region) {
  const std::lock_guard lock(mutex_);
  std::erase_if(regions_, [](const auto& r) { return r.expired(); });
  regions_.push_back(region);
}

MetalPlace MetalRegions::find(const void* address, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(address);
  const std::lock_guard lock(mutex_);
  for (const auto& weak : regions_)
    if (const auto region = weak.lock(); region && region->contains(at)) return region->find(at, bytes);
  throw InternalError("Metal: an address that this backend did not allocate; this is a defect of flash_moe, please report it");
}

MetalMemory::MetalMemory(MetalDevice& device, MetalRegions& regions, size_t bytes) : bytes_(bytes) {
  const size_t window = window_bytes(bytes, device.buffer_bytes_max());
  const bool is_whole = window >= bytes;
  region_ = std::make_shared<MetalRegion>(device, bytes, window, is_whole ? window : window / 2);
  regions.add(region_);
}

MetalSlotArena::MetalSlotArena(MetalDevice& device, MetalRegions& regions, size_t slot_bytes, size_t slot_count)
    : slot_bytes_(round_up(slot_bytes, kMetalPageBytes)), slot_count_(slot_count) {
  if (slot_bytes_ == 0 || slot_count > std::numeric_limits<size_t>::max() / 2 / slot_bytes_)
    throw ConfigError("slots: wanted " + std::to_string(slot_count) + " of " + std::to_string(slot_bytes) +
                      " bytes, which no address space holds");
  const size_t chunk = chunk_bytes(slot_bytes_, device.buffer_bytes_max());
  region_ = std::make_shared<MetalRegion>(device, slot_bytes_ * slot_count, chunk, chunk);
  regions.add(region_);
}

}  // namespace flash_moe::backend
