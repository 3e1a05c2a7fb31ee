#include "format/safetensors.h"

#include <string>

#include "flash_moe/error.h"
#include "format/tensor_folder.h"
#include "test.h"

using flash_moe::Dtype;
using flash_moe::FormatError;
using flash_moe::format::parse_safetensors;
using flash_moe::format::SafetensorsHeader;

// Length prefix, header and `data_bytes` of data, with the file as long as that.
static SafetensorsHeader parse(const std::string& header, size_t data_bytes) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((header.size() >> (8 * i)) & 0xff);
  bytes += header;
  return parse_safetensors(bytes, bytes.size() + data_bytes, "x.safetensors");
}

static std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                          const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TEST(safetensors_reads_a_literal_file) {
  constexpr char kFile[] =
      "\x5d\0\0\0\0\0\0\0"
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}     )"
      "\1\2\3\4";
  const std::string bytes(kFile, sizeof kFile - 1);
  const SafetensorsHeader header = parse_safetensors(bytes, bytes.size(), "x");
  CHECK(header.metadata.size() == 1 && header.metadata[0].second == "pt");
  CHECK(header.tensors.size() == 1 && header.tensors[0].first == "a");
  const auto& info = header.tensors[0].second;
  CHECK(info.dtype == Dtype::bf16 && info.shape == (std::vector<int64_t>{1, 2}));
  CHECK(info.bytes == 4 && bytes[info.offset] == '\1');
}

TEST(safetensors_sorts_by_offset_and_takes_scalars_and_empty_tensors) {
  const auto header = parse("{" + tensor("b", "U8", "[3]", "[4,7]") + "," + tensor("a", "F32", "[]", "[0,4]") + "," +
                                tensor("e", "F32", "[0,5]", "[4,4]") + "}", 7);
  CHECK(header.tensors[0].first == "a" && header.tensors[1].first == "e" && header.tensors[2].first == "b");
}

TEST(safetensors_rejects_a_file_shorter_than_the_length) {
  CHECK_THROWS(parse_safetensors("\1\2\3", 3, "x"), FormatError, "x: the file has 3 bytes, too few");
}

TEST(safetensors_rejects_a_header_length_above_the_limit) {
  const std::string bytes("\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
  CHECK_THROWS(parse_safetensors(bytes, 10, "x"), FormatError, "more than the 100000000");
}

TEST(safetensors_rejects_a_header_past_the_file) {
  const std::string bytes("\x20\0\0\0\0\0\0\0{}", 10);
  CHECK_THROWS(parse_safetensors(bytes, 10, "x"), FormatError, "header of 32 bytes ends past the file of 10");
}

TEST(safetensors_rejects_a_header_that_is_no_object) {
  CHECK_THROWS(parse("[1]", 0), FormatError, "does not begin with '{'");
  CHECK_THROWS(parse("", 0), FormatError, "does not begin with '{'");
}

TEST(safetensors_rejects_a_header_that_is_not_json) {
  CHECK_THROWS(parse("{\"a\":", 0), FormatError, "x.safetensors header:1:");
  CHECK_THROWS(parse("{\"a\":\xff}", 0), FormatError, "x.safetensors header:1:");
}

TEST(safetensors_rejects_metadata_that_is_not_strings) {
  CHECK_THROWS(parse(R"({"__metadata__":{"a":1}})", 0), FormatError, "__metadata__.a must be a string");
}

TEST(safetensors_rejects_duplicate_names) {
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("a", "U8", "[1]", "[1,2]") + "}", 2),
               FormatError, "two members named \"a\"");
}

TEST(safetensors_rejects_an_unknown_dtype) {
  CHECK_THROWS(parse("{" + tensor("a", "F12", "[1]", "[0,1]") + "}", 1), FormatError, "a.dtype is \"F12\"");
}

TEST(safetensors_rejects_missing_fields) {
  CHECK_THROWS(parse(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), FormatError, "a.dtype is missing");
  CHECK_THROWS(parse(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1), FormatError, "a.shape is missing");
  CHECK_THROWS(parse(R"({"a":{"dtype":"U8","shape":[1]}})", 1), FormatError, "a.data_offsets is missing");
  CHECK_THROWS(parse(R"({"a":7})", 1), FormatError, "x.safetensors: a: wanted an object, got an integer");
}

TEST(safetensors_rejects_bad_dimensions) {
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[-1]", "[0,1]") + "}", 1), FormatError, "a.shape holds");
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[1.5]", "[0,1]") + "}", 1), FormatError, "a.shape holds a number");
}

TEST(safetensors_rejects_offsets_that_are_no_range) {
  for (const char* offsets : {"[0]", "[0,1,2]", "[1,0]", "[-1,0]", "[0,\"1\"]", "[]"}) {
    CHECK_THROWS(parse("{" + tensor("a", "U8", "[1]", offsets) + "}", 1), FormatError, "a.data_offsets must be [begin, end]");
  }
}

TEST(safetensors_rejects_bytes_that_do_not_fit_the_shape) {
  CHECK_THROWS(parse("{" + tensor("a", "F32", "[2,3]", "[0,23]") + "}", 23), FormatError,
               "a.data_offsets span 23 bytes, but shape [2, 3] of F32 has 24");
  CHECK_THROWS(parse("{" + tensor("a", "F64", "[4611686018427387904,8]", "[0,1]") + "}", 1), FormatError, "more than 2^63");
}

TEST(safetensors_rejects_overlap_holes_and_truncation) {
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[4]", "[0,4]") + "," + tensor("b", "U8", "[2]", "[3,5]") + "}", 5), FormatError,
               "b begins at data offset 3, inside a, which ends at 4");
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("b", "U8", "[1]", "[3,4]") + "}", 4), FormatError,
               "no tensor covers data offsets 1 to 3, before b");
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[8]", "[0,8]") + "}", 5), FormatError,
               "a ends at data offset 8, past the 5 bytes of data");
  CHECK_THROWS(parse("{" + tensor("a", "U8", "[1]", "[0,1]") + "}", 3), FormatError, "but the file has 3 bytes of data");
}

TEST(safetensors_files_are_read_and_lfs_pointers_named) {
  const test::Folder folder;
  folder.write("a", test::safetensors_bytes({test::pattern("t", Dtype::u8, {5})}));
  CHECK(flash_moe::format::read_safetensors_header(flash_moe::io::File(folder.file("a"))).tensors[0].first == "t");
  folder.write("p", "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n");
  CHECK_THROWS(flash_moe::format::read_safetensors_header(flash_moe::io::File(folder.file("p"))), FormatError, "git lfs pull");
  folder.write("s", "abc");
  CHECK_THROWS(flash_moe::format::read_safetensors_header(flash_moe::io::File(folder.file("s"))), FormatError, "too few");
}
