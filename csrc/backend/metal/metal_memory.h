#pragma once
// Memory that both processors read where it lies: the dense weights and the slots of experts. Included by
// Objective-C++ with ARC only.
//
// DESIGN. Pages are ours (AlignedMemory); Metal gets them without a copy. A buffer's deallocator keeps the pages, so they
// outlive the last command buffer that reads them, whoever frees what first. Metal makes a whole buffer resident when a
// command buffer uses it, and limits its length; hence memory is seen through windows, each a buffer made when first
// computed with: of slots, chunks side by side; of weights longer than the limit, windows that overlap by half.

#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "backend/metal/metal_device.h"
#include "base/aligned_memory.h"

namespace flash_moe::backend {

constexpr size_t kMetalPageBytes = 16384;  // of Apple's GPUs and processors

// Where bytes lie for the GPU.
struct MetalPlace {
  MetalBuffer buffer;
  size_t offset = 0;
};

// One piece of memory and the buffers over it. Thread-safe.
class MetalRegion {
 public:
  // Window i covers [i * stride, i * stride + window) as far as the memory goes; both multiples of kMetalPageBytes.
  MetalRegion(MetalDevice& device, size_t bytes, size_t window_bytes, size_t stride_bytes);

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool contains(const uint8_t* address) const { return address >= data_ && address < data_ + bytes_; }
  // `bytes` from `address` on must lie in one window.
  MetalPlace find(const uint8_t* address, size_t bytes);
  void release(size_t offset, size_t bytes);
  void touch(size_t offset, size_t bytes);

 private:
  MetalBuffer make_window(size_t index) const;

  const id<MTLDevice> device_;
  const size_t window_bytes_;
  const size_t stride_bytes_;
  std::shared_ptr<AlignedMemory> pages_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  std::mutex mutex_;
  std::vector<MetalBuffer> windows_;
};

// The regions of one backend. Thread-safe.
class MetalRegions {
 public:
  void add(const std::shared_ptr<MetalRegion>& region);
  // Throws InternalError for memory that no backend of this kind allocated.
  MetalPlace find(const void* address, size_t bytes);

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<MetalRegion>> regions_;
};

class MetalMemory final : public DeviceMemory {
 public:
  MetalMemory(MetalDevice& device, MetalRegions& regions, size_t bytes);
  uint8_t* data() const override { return region_->data(); }
  size_t bytes() const override { return bytes_; }

 private:
  std::shared_ptr<MetalRegion> region_;
  size_t bytes_;
};

class MetalSlotArena final : public SlotArena {
 public:
  MetalSlotArena(MetalDevice& device, MetalRegions& regions, size_t slot_bytes, size_t slot_count);
  uint8_t* slot(size_t index) const override { return region_->data() + index * slot_bytes_; }
  size_t slot_bytes() const override { return slot_bytes_; }
  size_t slot_count() const override { return slot_count_; }
  void release(size_t index) override { region_->release(index * slot_bytes_, slot_bytes_); }
  void touch(size_t index) override { region_->touch(index * slot_bytes_, slot_bytes_); }

 private:
  size_t slot_bytes_;
  size_t slot_count_;
  std::shared_ptr<MetalRegion> region_;
};

}  // namespace flash_moe::backend
