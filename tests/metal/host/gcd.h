// The dispatch object that others look into.
#pragma once
#include <string>

#include "objc_runtime.h"

struct DispatchData : objc::Object {
  using Object::Object;
  std::string bytes;
};
