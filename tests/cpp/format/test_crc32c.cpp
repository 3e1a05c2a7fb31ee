#include "format/crc32c.h"

#include <string>
#include <vector>

#include "test.h"

using flash_moe::format::crc32c;

// RFC 3720, appendix B.4.
TEST(crc32c_matches_the_published_vectors) {
  CHECK(crc32c(0, "123456789", 9) == 0xe3069283u);
  CHECK(crc32c(0, std::vector<uint8_t>(32, 0x00).data(), 32) == 0x8a9136aau);
  CHECK(crc32c(0, std::vector<uint8_t>(32, 0xff).data(), 32) == 0x62a8ab43u);
  std::vector<uint8_t> rising(32);
  for (size_t i = 0; i < 32; ++i) rising[i] = static_cast<uint8_t>(i);
  CHECK(crc32c(0, rising.data(), 32) == 0x46dd794eu);
  CHECK(crc32c(0, nullptr, 0) == 0);
}

TEST(crc32c_continues_at_any_split) {
  const std::string text = "a string of forty-one bytes, give or take";
  const uint32_t whole = crc32c(0, text.data(), text.size());
  for (size_t i = 0; i <= text.size(); ++i) {
    CHECK(crc32c(crc32c(0, text.data(), i), text.data() + i, text.size() - i) == whole);
  }
}
