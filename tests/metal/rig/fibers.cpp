#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

extern "C" {
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void __tsan_destroy_fiber(void*) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __asan_init() __attribute__((weak));
void __sanitizer_start_switch_fiber(void**, const void*, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) __attribute__((weak));

// Saves the callee-saved registers on the stack, its pointer in *save, and continues on `load`.
void rig_switch_stack(void** save, void* load);
}

#if defined(__x86_64__)
asm(R"(
.text
.globl rig_switch_stack
.type rig_switch_stack,@function
rig_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size rig_switch_stack,.-rig_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl rig_switch_stack
.type rig_switch_stack,%function
rig_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size rig_switch_stack,.-rig_switch_stack
)");
#else
#error "rig_switch_stack is written for x86-64 and arm64"
#endif

namespace rig {
namespace {

constexpr size_t kPage = 4096;
constexpr unsigned kNoSync = 1;  // __tsan_switch_to_fiber_no_sync: a switch orders nothing

}  // namespace

Stack::Stack() {
  void* memory = mmap(nullptr, kBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);
  memory_ = static_cast<char*>(memory) + kPage;
}

Stack::~Stack() { munmap(memory_ - kPage, kBytes + kPage); }

void Fiber::start(const Stack& stack, void (*body)()) {
  *this = Fiber();
  stack_bottom_ = stack.bottom();
  const auto top = reinterpret_cast<uintptr_t>(stack.top()) & ~uintptr_t{63};
#if defined(__x86_64__)
  auto* words = reinterpret_cast<void**>(top);
  *--words = nullptr;  // keeps the body's frame aligned as after a call
  *--words = reinterpret_cast<void*>(body);
  for (int i = 0; i < 6; ++i) *--words = nullptr;
  stack_pointer_ = words;
#else
  char* frame = reinterpret_cast<char*>(top) - 160;
  std::memset(frame, 0, 160);
  std::memcpy(frame + 88, &body, sizeof body);  // x30
  stack_pointer_ = frame;
#endif
  if (__tsan_create_fiber) sanitizer_fiber_ = __tsan_create_fiber(0);
}

void Fiber::enter() {
  if (__tsan_switch_to_fiber) {
    sanitizer_caller_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(sanitizer_fiber_, kNoSync);
  }
  void* caller_fake = nullptr;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&caller_fake, stack_bottom_, Stack::kBytes);
  rig_switch_stack(&caller_pointer_, stack_pointer_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(caller_fake, nullptr, nullptr);
}

void Fiber::leave(bool for_good) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(sanitizer_caller_, kNoSync);
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, caller_stack_, caller_stack_bytes_);
  }
  rig_switch_stack(&stack_pointer_, caller_pointer_);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_stack_bytes_);
  }
}

void Fiber::destroy() {
  if (__tsan_destroy_fiber && sanitizer_fiber_ != nullptr) __tsan_destroy_fiber(sanitizer_fiber_);
  sanitizer_fiber_ = nullptr;
}

void fiber_entered(Fiber& fiber) {
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &fiber.caller_stack_, &fiber.caller_stack_bytes_);
  }
}

bool under_thread_sanitizer() { return __tsan_create_fiber != nullptr; }
bool under_address_sanitizer() { return __asan_init != nullptr; }

void sanitizer_acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}

void sanitizer_release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}

}  // namespace rig
