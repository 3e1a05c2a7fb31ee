// A small Objective-C runtime for tests on Linux: what clang's gnustep-2.0 ABI with ARC calls, and nothing more.
//
// DESIGN. Classes are made in C++ (`define_class`, `add_method`) while the program starts; code compiled as Objective-C only
// uses them (there is no @implementation). An object is a C++ struct derived from Object. The memory of a freed object is
// kept for a while with the class Zombie, so that a message to it, or one release too many, ends the program with a name.
// Methods are added before main; lookups need no lock after that.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace objc {

struct Selector {
  const char* name;
  const char* types;
};

struct Object;

struct Class {
  Class* isa;  // the class of class methods
  Class* super_class;
  std::string name;
  bool is_meta = false;
  std::unordered_map<const char*, void*> methods;  // by interned selector name
  Object* (*make)(Class*) = nullptr;               // +new
  std::atomic<int64_t> live{0};
};

// `isa` comes first, as compiled code expects; hence no virtual destructor.
struct Object {
  Class* isa;
  std::atomic<int64_t> references{1};
  void (*destroy)(Object*) = nullptr;

  explicit Object(Class* of) : isa(of) { ++of->live; }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
};

Class* define_class(const char* name, const char* super_class = "NSObject");  // finds it or makes it
void add_method_address(Class* owner, const char* selector, void* implementation);
// Implementations are captureless lambdas: (self, Selector*, arguments...).
template <class F>
void add_method(Class* owner, const char* selector, F implementation) {
  add_method_address(owner, selector, reinterpret_cast<void*>(+implementation));
}
template <class F>
void add_class_method(Class* owner, const char* selector, F implementation) {
  add_method_address(owner->isa, selector, reinterpret_cast<void*>(+implementation));
}

void bury(Object* object);  // the memory of a destroyed object, for Zombie
[[noreturn]] void fail(const std::string& what);  // prints and aborts

extern "C" {
void* objc_retain(void* object);
void objc_release(void* object);
void* objc_autorelease(void* object);
void* objc_autoreleasePoolPush();
void objc_autoreleasePoolPop(void* mark);
}

// A new object with one reference, which the caller owns.
template <class T>
T* make(Class* of) {
  T* object = new T(of);
  object->destroy = [](Object* o) {
    auto* typed = static_cast<T*>(o);
    Class* was = o->isa;
    typed->~T();
    --was->live;
    bury(o);
  };
  return object;
}
template <class T>
T* make(const char* class_name) {
  return make<T>(define_class(class_name));
}
template <class T>
T* autoreleased(T* object) {
  return static_cast<T*>(objc_autorelease(object));
}

// A counted reference held by C++.
template <class T>
class Ref {
 public:
  Ref() = default;
  Ref(T* object) : object_(object) { objc_retain(object); }
  Ref(const Ref& other) : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(other.object_) { other.object_ = nullptr; }
  ~Ref() { objc_release(object_); }
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

struct String : Object {
  using Object::Object;
  std::string text;
};
struct Error : Object {
  using Object::Object;
  std::string text;
};
Object* new_string(const std::string& text);  // autoreleased
Object* new_error(const std::string& text);   // autoreleased
std::string text_of(const void* string);      // of any kind of NSString; empty for nil

struct AutoreleasePool {
  void* mark = objc_autoreleasePoolPush();
  ~AutoreleasePool() { objc_autoreleasePoolPop(mark); }
};

}  // namespace objc

// Code compiled for gnustep-2.0 finds classes by these symbols.
#define OBJC_CLASS_REFERENCE(name)                                                  \
  extern "C" {                                                                      \
  void* objc_reference_##name __asm__("._OBJC_REF_CLASS_" #name) = nullptr;         \
  }                                                                                 \
  __attribute__((constructor(101))) static void set_objc_reference_##name() {      \
    objc_reference_##name = objc::define_class(#name);                              \
  }
// Objects allocated and not freed, by class name: for tests that look for leaks.
extern "C" int64_t objc_live_count(const char* class_name);
