#include "base/phase_clock.h"

#include <utility>

namespace flash_moe {

std::string PhaseClock::take_trace_json() {
  const std::vector<Event> events = std::exchange(events_, {});
  const uint64_t zero_ns = events.empty() ? 0 : events.front().begin_ns;
  const auto micros = [](uint64_t ns) {
    return std::to_string(ns / 1000) + "." + std::to_string(1000 + ns % 1000).substr(1);
  };
  std::string out = "{\"traceEvents\":[";
  for (size_t i = 0; i < events.size(); ++i) {
    const Event& event = events[i];
    out += i ? ",\n" : "\n";
    out += "{\"ph\":\"X\",\"pid\":1,\"tid\":1,\"name\":\"";
    out += phase_name(event.phase);
    out += "\",\"ts\":" + micros(event.begin_ns - zero_ns) + ",\"dur\":" + micros(event.end_ns - event.begin_ns) +
           ",\"args\":{\"layer\":" + std::to_string(event.layer) + ",\"bytes\":" + std::to_string(event.bytes) + "}}";
  }
  return out + "\n],\"displayTimeUnit\":\"ns\"}\n";
}

}  // namespace flash_moe
