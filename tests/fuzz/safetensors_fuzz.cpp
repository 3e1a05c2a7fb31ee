#include "format/safetensors.h"
#include "fuzz.h"

#include <algorithm>

using flash_moe::format::parse_safetensors;

namespace {

std::string with_length(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return bytes + header + data;
}

void check(std::string_view bytes) {
  const auto header = parse_safetensors(bytes, bytes.size(), "input");
  for (const auto& [name, info] : header.tensors) {
    fuzz::require(info.offset <= bytes.size() && info.bytes <= bytes.size() - info.offset, "tensors lie inside the file");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::run(data, size, check);
  // Mutations seldom keep the length right: the same bytes as a header of their own length get past it.
  return fuzz::run(data, size, [](std::string_view bytes) {
    check(with_length(std::string(bytes.substr(std::min<size_t>(8, bytes.size()))), "12345678"));
  });
}

std::vector<std::string> fuzz::seeds() {
  const std::string tensor = R"("a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]})";
  return {with_length("{" + tensor + "}", "12345678"),
          with_length(R"({"__metadata__":{"format":"mlx"},)" + tensor + R"(,"b":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}}  )", "12345678"),
          "version https://git-lfs.github.com/spec/v1\n", with_length("{}", "")};
}

std::vector<std::string> fuzz::words() {
  return {"F32", "F8_E4M3", "BOOL", "\"shape\"", "\"data_offsets\"", "\"dtype\"", "[", "]", "-1", "9223372036854775807", "1e3", "0", ",", "}", "{",
          "\"__metadata__\":{}", std::string(3, '\0'), "\xff\xff\xff\xff"};
}
