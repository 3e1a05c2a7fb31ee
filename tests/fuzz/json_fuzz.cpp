#include "format/json.h"
#include "fuzz.h"

using flash_moe::format::parse_json;
using flash_moe::format::write_json;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::run(data, size, [](std::string_view text) {
    const std::string written = write_json(parse_json(text, "input"));
    // The writer indents: what fits the depth limit once fits it again.
    fuzz::require(write_json(parse_json(written, "written")) == written, "writing and reading is stable");
  });
}

std::vector<std::string> fuzz::seeds() {
  return {R"({"a": [1, -2.5e-3, true, null, "x\u00e9\ud83d\ude00\n"], "b": {"c": {}}})", "[[[[]]]]", "\"\xc3\xa9\"", "-0",
          "9223372036854775808", "[1e308, -1e-308]"};
}

std::vector<std::string> fuzz::words() {
  return {"{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "\\ud800", "null", "true", "NaN", "-Infinity", "1e999", "00", "-", ".", "e+",
          "\xff", "\xf4\x90\x80\x80", std::string(1, '\0'), std::string(70, '['), "\"a\":1,", " "};
}
