#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.h"

namespace flash_moe::bindings {
namespace {

using namespace nb::literals;

// Often enough for Ctrl-C to feel immediate, rare enough not to wait for the GIL in every layer.
constexpr auto kCheckInterval = std::chrono::milliseconds(20);

using Rows = nb::ndarray<nb::numpy, float, nb::c_contig>;

// An array that owns its memory; `columns` 0 makes it one-dimensional.
struct NewArray {
  explicit NewArray(size_t rows, size_t columns) : rows(rows), columns(columns) {
    data = new float[rows * (columns ? columns : 1)];
    owner = nb::capsule(data, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
  }
  Rows array() const {
    if (columns == 0) return Rows(data, {rows}, owner);
    return Rows(data, {rows, columns}, owner);
  }
  size_t rows, columns;
  float* data;
  nb::capsule owner;
};

Rows feed(SessionHandle& handle, const EngineHandle& engine, const std::vector<int32_t>& tokens, bool all,
          nb::object callback) {
  Session& session = handle.get();
  const auto vocab = static_cast<size_t>(engine.get().info().vocab);
  const NewArray out = all ? NewArray(tokens.size(), vocab) : NewArray(vocab, 0);
  const Progress progress = python_progress(std::move(callback));
  run_released([&] { session.feed(tokens, all ? nullptr : out.data, all ? out.data : nullptr, progress); });
  return out.array();
}

Rows decode(EngineHandle& engine, const std::vector<SessionHandle*>& handles, const std::vector<int32_t>& tokens) {
  std::vector<Session*> sessions;
  for (SessionHandle* handle : handles) sessions.push_back(&handle->get());
  const NewArray out(tokens.size(), static_cast<size_t>(engine.get().info().vocab));
  const Progress progress = python_progress(nb::none());
  run_released([&] { engine.get().decode(sessions, tokens, out.data, progress); });
  return out.array();
}

// A session together with the engine handle that made it, whose vocabulary sizes the arrays.
struct PySession {
  SessionHandle session;
  EngineHandle engine;
};

template <typename T, typename Fn>
T released(const Fn& fn) {
  T result{};
  run_released([&] { result = fn(); });
  return result;
}

using RowsAndLogits = std::pair<std::vector<std::vector<int32_t>>, std::optional<Rows>>;

RowsAndLogits take_routes(EngineHandle& engine) {
  RouteTrace trace = released<RouteTrace>([&] { return engine.get().take_routes(); });
  const size_t experts = trace.rows.empty() ? 0 : trace.logits.size() / trace.rows.size();
  if (experts == 0) return {std::move(trace.rows), std::nullopt};
  const NewArray logits(trace.rows.size(), experts);
  std::copy(trace.logits.begin(), trace.logits.end(), logits.data);
  return {std::move(trace.rows), logits.array()};
}

void bind_session(nb::module_& m) {
  nb::class_<PySession>(m, "Session", "One timeline of tokens of an Engine.")
      .def_prop_ro("position", [](PySession& s) { return s.session.get().position(); }, "Tokens fed so far.")
      .def_prop_ro(
          "tokens",
          [](PySession& s) {
            const auto tokens = s.session.get().tokens();
            return std::vector<int32_t>(tokens.begin(), tokens.end());
          },
          "Every token fed, in order.")
      .def_prop_ro("bytes", [](PySession& s) { return s.session.get().bytes(); }, "Memory of its state.")
      .def(
          "feed",
          [](PySession& s, const std::vector<int32_t>& tokens, bool all, nb::object progress) {
            return feed(s.session, s.engine, tokens, all, std::move(progress));
          },
          "tokens"_a, "all"_a = false, "progress"_a.none() = nb::none(),
          "Feed tokens; float32 logits [vocab] after the last, or [tokens, vocab] after every one.\n\n"
          "On any error the session is as it was before the call.")
      .def(
          "fork",
          [](PySession& s) {
            PySession copy{{}, s.engine};
            run_released([&] { copy.session.session = s.session.get().fork(); });
            return copy;
          },
          "A copy that goes its own way from here.")
      .def(
          "save", [](PySession& s, const std::string& path) { run_released([&] { s.session.get().save(path); }); },
          "path"_a, "Write the session's tokens and state to a file.")
      .def(
          "close", [](PySession& s) { s.session.session.reset(); }, "Free the session's memory.");
}

}  // namespace

Progress python_progress(nb::object callback) {
  // The callable is only touched with the GIL held; the shared_ptr's last owner is the caller, who holds it again by then.
  auto shared = std::make_shared<nb::object>(std::move(callback));
  auto last = std::chrono::steady_clock::now();
  return [shared, last](int64_t done, int64_t total) mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now - last < kCheckInterval) return false;
    last = now;
    const nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return true;
    if (shared->is_none()) return false;
    PyObject* answer = PyObject_CallFunction(shared->ptr(), "LL", static_cast<long long>(done), static_cast<long long>(total));
    if (answer == nullptr) return true;
    const bool stop = PyObject_IsTrue(answer) != 0;
    Py_DECREF(answer);
    return stop;
  };
}

void run_released(const std::function<void()>& fn) {
  std::exception_ptr error;
  {
    const nb::gil_scoped_release released;
    try {
      fn();
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  if (error) std::rethrow_exception(error);
}

void bind_engine(nb::module_& m) {
  bind_session(m);
  nb::class_<EngineHandle>(m, "Engine", "A loaded model. Use flash_moe.Engine, which adds text to it.")
      .def_static(
          "open",
          [](const std::string& path, const EngineOptions& options, nb::object progress) {
            EngineHandle handle;
            const Progress wrapped = python_progress(std::move(progress));
            run_released([&] { handle.engine = Engine::open(path, options, wrapped); });
            return handle;
          },
          "path"_a, "options"_a, "progress"_a.none() = nb::none(), "Open a model folder.")
      .def("info", [](EngineHandle& e) { return e.get().info(); }, "What the folder holds and how it runs.")
      .def("memory_plan", [](EngineHandle& e) { return e.get().memory_plan(); }, "How memory is divided now.")
      .def(
          "new_session", [](EngineHandle& e) { return PySession{{e.get().new_session()}, e}; }, "An empty session.")
      .def(
          "load_session",
          [](EngineHandle& e, const std::string& path) {
            PySession session{{}, e};
            run_released([&] { session.session.session = e.get().load_session(path); });
            return session;
          },
          "path"_a, "A session saved by Session.save.")
      .def(
          "decode",
          [](EngineHandle& e, const std::vector<PySession*>& sessions, const std::vector<int32_t>& tokens) {
            std::vector<SessionHandle*> handles;
            for (PySession* session : sessions) handles.push_back(&session->session);
            return decode(e, handles, tokens);
          },
          "sessions"_a, "tokens"_a, "One token for each session, as one step; float32 logits [sessions, vocab].")
      .def(
          "set_memory", [](EngineHandle& e, uint64_t bytes) { run_released([&] { e.get().set_memory(bytes); }); },
          "memory_bytes"_a, "Change the memory bound while running.")
      .def("drop_cache", [](EngineHandle& e) { run_released([&] { e.get().drop_cache(); }); }, "Forget cached experts.")
      .def("stats", [](EngineHandle& e) { return released<Stats>([&] { return e.get().stats(); }); },
           "Counters since the last reset.")
      .def("reset_stats", [](EngineHandle& e) { run_released([&] { e.get().reset_stats(); }); }, "Zero the counters.")
      .def("trace", [](EngineHandle& e, bool on) { run_released([&] { e.get().trace(on); }); }, "on"_a,
           "Start or stop collecting trace events.")
      .def(
          "take_trace_json",
          [](EngineHandle& e) { return released<std::string>([&] { return e.get().take_trace_json(); }); },
          "Trace events as Chrome/Perfetto JSON.")
      .def("record_routes", [](EngineHandle& e, bool on) { run_released([&] { e.get().record_routes(on); }); }, "on"_a,
           "Start or stop recording the experts of every token.")
      .def(
          "take_routes", &take_routes,
          "Since record_routes(True): rows of layer and expert ids in rank order; router logits, float32 [rows, experts].")
      .def("close", [](EngineHandle& e) { e.engine.reset(); }, "Free the engine once its sessions are gone.");
  m.def(
      "plan_memory",
      [](const std::string& path, const EngineOptions& options, int64_t context_tokens) {
        return released<MemoryPlan>([&] { return plan_memory(path, options, context_tokens); });
      },
      "path"_a, "options"_a, "context_tokens"_a = 0, "The division of memory, from the headers alone.");
  m.def("inspect", [](const std::string& path) { return released<ModelInfo>([&] { return inspect(path); }); }, "path"_a,
        "What a folder holds, from the headers alone.");
}

}  // namespace flash_moe::bindings
