// Stacks and switches. A fiber runs until it calls `leave`; whoever entered it goes on from there.
// Tells AddressSanitizer and ThreadSanitizer of every switch when the process runs under one of them.
#pragma once
#include <cstddef>

namespace rig {

class Stack {
 public:
  static constexpr size_t kBytes = 256 << 10;
  Stack();  // throws std::bad_alloc
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return memory_; }
  char* top() const { return memory_ + kBytes; }

 private:
  char* memory_;  // a page below it is unmapped
};

// One GPU thread's control flow. `enter` and `leave` come in pairs on one OS thread.
class Fiber {
 public:
  // `body` runs on `stack` at the first enter; it must end with leave(true) and never return.
  void start(const Stack& stack, void (*body)());
  void enter();
  void leave(bool for_good);
  void destroy();  // after its last leave

 private:
  void* stack_pointer_ = nullptr;
  void* caller_pointer_ = nullptr;
  const char* stack_bottom_ = nullptr;
  void* sanitizer_fiber_ = nullptr;   // ThreadSanitizer's name of this fiber, and of the caller
  void* sanitizer_caller_ = nullptr;
  void* fake_stack_ = nullptr;        // AddressSanitizer's
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
  friend void fiber_entered(Fiber& fiber);
};

// First call of a body: completes the switch that entered it.
void fiber_entered(Fiber& fiber);

bool under_thread_sanitizer();
bool under_address_sanitizer();
// Memory order between fibers, for ThreadSanitizer's eyes only.
void sanitizer_acquire(void* tag);
void sanitizer_release(void* tag);

}  // namespace rig
