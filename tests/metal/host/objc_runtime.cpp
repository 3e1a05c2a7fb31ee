#include "objc_runtime.h"

#include <Block.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#if !defined(__x86_64__)
#error "objc_msgSend is written for x86-64"
#endif

extern "C" {
extern void* _NSConcreteStackBlock[];
extern void* _NSConcreteGlobalBlock[];
extern void* _NSConcreteMallocBlock[];
}

namespace objc {
namespace {

// None of these are destroyed: threads may use them while the program ends.
std::recursive_mutex& mutex() {
  static auto* m = new std::recursive_mutex;
  return *m;
}
std::unordered_map<std::string, Class*>& classes() {
  static auto* t = new std::unordered_map<std::string, Class*>;
  return *t;
}

const char* intern(const char* name) {
  static auto* names = new std::unordered_map<std::string, const char*>;
  const std::lock_guard lock(mutex());
  const auto [at, added] = names->try_emplace(name, nullptr);
  if (added) at->second = strdup(name);
  return at->second;
}

Object* make_plain(Class* of) { return make<Object>(of); }

Class* make_class(const char* name, Class* super_class) {
  auto* meta = new Class{nullptr, super_class ? super_class->isa : nullptr, name, true, {}, nullptr, {}};
  auto* made = new Class{meta, super_class, name, false, {}, super_class ? super_class->make : make_plain, {}};
  classes()[name] = made;
  return made;
}

bool is_block(const void* object) {
  const void* isa = *static_cast<void* const*>(object);
  return isa == _NSConcreteStackBlock || isa == _NSConcreteGlobalBlock || isa == _NSConcreteMallocBlock;
}

// Literals of up to eight characters are in the pointer itself.
bool is_tiny_string(const void* object) { return (reinterpret_cast<uintptr_t>(object) & 7) == 4; }

// A string literal as clang lays it out.
struct ConstantString {
  Class* isa;
  uint32_t flags, length, size, hash;
  const char* data;
};

Class* constant_string_class() {
  static Class* c = define_class("NSConstantString", "NSString");
  return c;
}
Class* zombie_class() {
  static Class* c = define_class("Zombie", "NSObject");
  return c;
}
bool is_immortal(const void* object) {
  const Class* c = *static_cast<Class* const*>(object);
  return c == constant_string_class() || c->is_meta;  // literals and classes
}

Class* class_of(const void* object) {
  return is_tiny_string(object) ? define_class("TinyString", "NSString") : *static_cast<Class* const*>(object);
}

thread_local std::vector<void*> autorelease_pool;

}  // namespace

void fail(const std::string& what) {
  std::fprintf(stderr, "fake: %s\n", what.c_str());
  std::fflush(stderr);
  std::abort();
}

void bury(Object* object) {
  // Its name stays readable: a zombie is told from others by this side table.
  static auto* graves = new std::deque<Object*>;
  const std::lock_guard lock(mutex());
  object->isa = zombie_class();
  graves->push_back(object);
  if (graves->size() <= 100000) return;
  ::operator delete(graves->front());
  graves->pop_front();
}

void add_method_address(Class* owner, const char* selector, void* implementation) {
  owner->methods[intern(selector)] = implementation;
}

std::string text_of(const void* string) {
  if (!string) return "";
  if (is_tiny_string(string)) {
    const auto bits = reinterpret_cast<uint64_t>(string);
    std::string text;
    for (unsigned i = 0; i < ((bits >> 3) & 31); ++i) text += static_cast<char>((bits >> (57 - 7 * i)) & 127);
    return text;
  }
  if (class_of(string) == constant_string_class()) {
    const auto* constant = static_cast<const ConstantString*>(string);
    return {constant->data, constant->size};
  }
  return static_cast<const String*>(string)->text;
}

Object* new_string(const std::string& text) {
  auto* made = make<String>("NSString");
  made->text = text;
  return autoreleased(made);
}

Object* new_error(const std::string& text) {
  auto* made = make<Error>("NSError");
  made->text = text;
  return autoreleased(made);
}

// The root class and the few of Foundation.
static Class* make_root() {
  Class* object = make_class("NSObject", nullptr);
  const auto create = [](Class* c, Selector*) -> Object* { return c->make(c); };
  add_class_method(object, "alloc", create);
  add_class_method(object, "new", create);
  add_class_method(object, "class", [](Class* c, Selector*) { return c; });
  add_method(object, "init", [](Object* self, Selector*) { return self; });
  add_method(object, "self", [](Object* self, Selector*) { return self; });
  add_method(object, "hash", [](Object* self, Selector*) { return reinterpret_cast<uintptr_t>(self); });
  add_method(object, "isEqual:", [](Object* self, Selector*, Object* other) { return self == other; });
  add_method(object, "respondsToSelector:", [](Object* self, Selector*, Selector* asked) {
    for (Class* c = class_of(self); c; c = c->super_class)
      if (c->methods.count(intern(asked->name))) return true;
    return false;
  });
  add_method(object, "description", [](Object* self, Selector*) { return new_string("<" + class_of(self)->name + ">"); });

  Class* string = make_class("NSString", object);
  string->make = [](Class* c) -> Object* { return make<String>(c); };
  add_class_method(string, "stringWithUTF8String:", [](Class*, Selector*, const char* text) { return new_string(text); });
  add_method(string, "UTF8String", [](Object* self, Selector*) -> const char* {
    return static_cast<String*>(new_string(text_of(self)))->text.c_str();
  });
  add_method(string, "length", [](Object* self, Selector*) { return text_of(self).size(); });
  add_method(string, "description", [](Object* self, Selector*) { return self; });
  add_method(string, "isEqualToString:",
             [](Object* self, Selector*, Object* other) { return text_of(self) == text_of(other); });

  Class* error = make_class("NSError", object);
  add_method(error, "localizedDescription", [](Error* self, Selector*) { return new_string(self->text); });
  add_method(error, "domain", [](Error*, Selector*) { return new_string("fake"); });
  add_method(error, "code", [](Error*, Selector*) { return 1l; });
  return object;
}

Class* define_class(const char* name, const char* super_class) {
  const std::lock_guard lock(mutex());
  static bool is_rooted = false;
  if (!is_rooted) {
    is_rooted = true;
    make_root();
  }
  const auto at = classes().find(name);
  return at != classes().end() ? at->second : make_class(name, define_class(super_class));
}

// --- what compiled code calls ------------------------------------------------------------------------------------------
extern "C" {

void* objc_retain(void* object) {
  if (!object || is_tiny_string(object)) return object;
  if (is_block(object)) return _Block_copy(object);
  if (is_immortal(object)) return object;
  auto* counted = static_cast<Object*>(object);
  if (counted->isa == zombie_class()) fail("retain of a freed object");
  ++counted->references;
  return object;
}

void objc_release(void* object) {
  if (!object || is_tiny_string(object)) return;
  if (is_block(object)) {
    _Block_release(object);
    return;
  }
  if (is_immortal(object)) return;
  auto* counted = static_cast<Object*>(object);
  if (counted->isa == zombie_class()) fail("release of a freed object");
  if (--counted->references == 0) counted->destroy(counted);
}

void* objc_autorelease(void* object) {
  if (object) autorelease_pool.push_back(object);
  return object;
}
void* objc_autoreleasePoolPush() { return reinterpret_cast<void*>(autorelease_pool.size()); }
void objc_autoreleasePoolPop(void* mark) {
  while (autorelease_pool.size() > reinterpret_cast<size_t>(mark)) {
    void* object = autorelease_pool.back();
    autorelease_pool.pop_back();
    objc_release(object);
  }
}
void* objc_retainAutoreleasedReturnValue(void* object) { return objc_retain(object); }
void* objc_unsafeClaimAutoreleasedReturnValue(void* object) { return object; }
void* objc_autoreleaseReturnValue(void* object) { return objc_autorelease(object); }
void* objc_retainAutorelease(void* object) { return objc_autorelease(objc_retain(object)); }
void* objc_retainAutoreleaseReturnValue(void* object) { return objc_retainAutorelease(object); }
void* objc_retainBlock(void* block) { return block ? _Block_copy(block) : block; }
void objc_storeStrong(void** place, void* value) {
  void* old = *place;
  objc_retain(value);
  *place = value;
  objc_release(old);
}
Object* objc_alloc(Class* c) { return c->make(c); }
Object* objc_alloc_init(Class* c) { return c->make(c); }
Object* objc_opt_new(Class* c) { return c->make(c); }

// What self's class answers to a selector with; called by objc_msgSend.
void* fake_objc_lookup(void* self, Selector* selector) {
  if (!is_tiny_string(self) && is_block(self)) fail(std::string("message ") + selector->name + " to a block");
  Class* c = class_of(self);
  if (c == zombie_class()) fail(std::string("message ") + selector->name + " to a freed object");
  const char* name = selector->name;
  for (Class* k = c; k; k = k->super_class)
    if (const auto at = k->methods.find(name); at != k->methods.end()) return at->second;
  fail(std::string("unrecognized selector ") + (c->is_meta ? "+[" : "-[") + c->name + " " + name + "]");
}

// A module's selectors and literals, in the layout of gnustep-2.0's loader record.
void __objc_load(void** record) {
  for (auto* s = static_cast<Selector*>(record[1]); s < record[2]; ++s)
    if (s->name) s->name = intern(s->name);
  for (auto* c = static_cast<ConstantString*>(record[15]); c < record[16]; ++c) c->isa = constant_string_class();
}

int64_t objc_live_count(const char* class_name) { return define_class(class_name)->live; }
}

}  // namespace objc

// Keeps every argument register, finds the implementation and jumps to it; nil answers zero.
asm(R"(
.text
.macro SEND self, selector
  pushq %rbp
  movq %rsp, %rbp
  subq $192, %rsp
  movq %rdi, (%rsp)
  movq %rsi, 8(%rsp)
  movq %rdx, 16(%rsp)
  movq %rcx, 24(%rsp)
  movq %r8, 32(%rsp)
  movq %r9, 40(%rsp)
  movq %rax, 48(%rsp)
  movaps %xmm0, 64(%rsp)
  movaps %xmm1, 80(%rsp)
  movaps %xmm2, 96(%rsp)
  movaps %xmm3, 112(%rsp)
  movaps %xmm4, 128(%rsp)
  movaps %xmm5, 144(%rsp)
  movaps %xmm6, 160(%rsp)
  movaps %xmm7, 176(%rsp)
  movq \self, %rdi
  movq \selector, %rsi
  call fake_objc_lookup@PLT
  movq %rax, %r11
  movq (%rsp), %rdi
  movq 8(%rsp), %rsi
  movq 16(%rsp), %rdx
  movq 24(%rsp), %rcx
  movq 32(%rsp), %r8
  movq 40(%rsp), %r9
  movq 48(%rsp), %rax
  movaps 64(%rsp), %xmm0
  movaps 80(%rsp), %xmm1
  movaps 96(%rsp), %xmm2
  movaps 112(%rsp), %xmm3
  movaps 128(%rsp), %xmm4
  movaps 144(%rsp), %xmm5
  movaps 160(%rsp), %xmm6
  movaps 176(%rsp), %xmm7
  leave
  jmp *%r11
.endm
.globl objc_msgSend
.type objc_msgSend, @function
.globl objc_msgSend_fpret
.type objc_msgSend_fpret, @function
objc_msgSend:
objc_msgSend_fpret:
  testq %rdi, %rdi
  jz 1f
  SEND %rdi, %rsi
1:
  xorl %eax, %eax
  xorl %edx, %edx
  xorps %xmm0, %xmm0
  xorps %xmm1, %xmm1
  ret
.globl objc_msgSend_stret
.type objc_msgSend_stret, @function
objc_msgSend_stret:
  testq %rsi, %rsi
  jz 2f
  SEND %rsi, %rdx
2:
  movq %rdi, %rax
  ret
.globl __gnustep_objcxx_personality_v0
.type __gnustep_objcxx_personality_v0, @function
__gnustep_objcxx_personality_v0:
  jmp __gxx_personality_v0@PLT
)");

extern "C" {
void* objc_constant_string_class __asm__("._OBJC_CLASS_NSConstantString") = nullptr;  // literals get theirs when loaded
}
OBJC_CLASS_REFERENCE(NSObject)
OBJC_CLASS_REFERENCE(NSString)
OBJC_CLASS_REFERENCE(NSError)
