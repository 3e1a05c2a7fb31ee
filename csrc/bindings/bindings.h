#pragma once
// What the binding files share: one function for each topic, and the objects that Python holds.

#include <nanobind/nanobind.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "flash_moe/engine.h"

namespace flash_moe::bindings {

namespace nb = nanobind;

void bind_errors(nb::module_& m);
void bind_options(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_tools(nb::module_& m);

// An engine that can be closed before Python forgets it.
struct EngineHandle {
  std::shared_ptr<Engine> engine;
  Engine& get() const {
    if (!engine) throw ConfigError("the engine is closed");
    return *engine;
  }
};

struct SessionHandle {
  std::unique_ptr<Session> session;
  Session& get() const {
    if (!session) throw ConfigError("the session is closed");
    return *session;
  }
};

// A Progress that keeps Python alive: looks for Ctrl-C, and calls `callback` (done, total) -> stop unless None. To be
// used with the GIL released. It takes the GIL at most every few milliseconds.
Progress python_progress(nb::object callback);

// Runs fn with the GIL released; a Python exception left by python_progress replaces what fn throws.
void run_released(const std::function<void()>& fn);

}  // namespace flash_moe::bindings
