#pragma once
// Activation memory that grows to the largest step and can be given back. Contents do not survive growth.

#include <cstddef>
#include <memory>

#include "base/aligned_memory.h"

namespace flash_moe::backend {

template <typename T>
class Scratch {
 public:
  // At least `count` elements, 4096-aligned. Earlier pointers are invalid afterwards.
  T* ensure(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (!memory_ || memory_->size_bytes() < bytes) {
      memory_.reset();
      memory_ = std::make_unique<AlignedMemory>(bytes);
    }
    return data();
  }
  T* data() const { return memory_ ? reinterpret_cast<T*>(memory_->data()) : nullptr; }
  // Frees the memory if it holds more than `count` elements.
  void trim(int64_t count) {
    if (memory_ && memory_->size_bytes() > static_cast<size_t>(count) * sizeof(T) + 4096) memory_.reset();
  }

 private:
  std::unique_ptr<AlignedMemory> memory_;
};

}  // namespace flash_moe::backend
