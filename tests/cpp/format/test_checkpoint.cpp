#include "format/checkpoint.h"

#include <string>

#include "flash_moe/error.h"
#include "format/tensor_folder.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::Dtype;
using flash_moe::FormatError;
using flash_moe::format::Checkpoint;

static std::string one(const std::string& name, const std::string& metadata = "") {
  return test::safetensors_bytes({test::pattern(name, Dtype::u8, {2, 3})}, metadata);
}

static const char* const index_name = "model.safetensors.index.json";

TEST(checkpoint_reads_one_file_without_an_index) {
  const test::Folder folder;
  folder.write("model.safetensors", one("a", R"({"format":"mlx"})"));
  const Checkpoint checkpoint(folder.path());
  CHECK(checkpoint.says_mlx() && checkpoint.tensors().size() == 1);
  CHECK(checkpoint.need("a", {Dtype::u8}, {2, 3}).bytes == 6);
  CHECK_THROWS(checkpoint.need("b", {Dtype::u8}, {2}), FormatError, "tensor b is missing, wanted shape [2]");
  CHECK_THROWS(checkpoint.need("a", {Dtype::u8}, {3, 2}), FormatError, "tensor a has shape [2, 3], wanted [3, 2]");
  CHECK_THROWS(checkpoint.need("a", {Dtype::f32, Dtype::bf16}, {2, 3}), FormatError, "tensor a is U8, wanted F32 or BF16");
}

TEST(checkpoint_reads_shards_by_index) {
  const test::Folder folder;
  folder.write("m1.safetensors", one("a"));
  folder.write("m2.safetensors", one("b"));
  folder.write(index_name, R"({"metadata":{},"weight_map":{"b":"m2.safetensors","a":"m1.safetensors"}})");
  const Checkpoint checkpoint(folder.path());
  CHECK(checkpoint.files().size() == 2 && checkpoint.find("a") && checkpoint.find("b") && !checkpoint.says_mlx());
  CHECK(checkpoint.place_of(*checkpoint.find("b")) == folder.file("m2.safetensors"));
}

TEST(checkpoint_names_a_missing_shard) {
  const test::Folder folder;
  folder.write("m1.safetensors", one("a"));
  folder.write(index_name, R"({"weight_map":{"b":"m2.safetensors","a":"m1.safetensors"}})");
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "shard m2.safetensors is missing");
}

TEST(checkpoint_names_a_tensor_that_its_shard_lacks) {
  const test::Folder folder;
  folder.write("m1.safetensors", one("a"));
  folder.write(index_name, R"({"weight_map":{"b":"m1.safetensors"}})");
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "m1.safetensors: tensor b is missing");
}

TEST(checkpoint_names_a_tensor_that_two_shards_have) {
  const test::Folder folder;
  folder.write("m1.safetensors", one("a"));
  folder.write("m2.safetensors", one("a"));
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "tensor a is also in");
}

TEST(checkpoint_counts_shards_when_there_is_no_index) {
  const test::Folder folder;
  folder.write("model-00001-of-00002.safetensors", one("a"));
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "promises 2 shards, found 1");
  folder.write("model-00002-of-00002.safetensors", one("b"));
  CHECK(Checkpoint(folder.path()).tensors().size() == 2);
}

TEST(checkpoint_does_not_leave_the_folder) {
  const test::Folder folder;
  for (const char* name : {"../x.safetensors", "/etc/passwd", "..", ""}) {
    folder.write(index_name, std::string(R"({"weight_map":{"a":")") + name + "\"}}");
    CHECK_THROWS(Checkpoint(folder.path()), FormatError, "weight_map.a must be the name of a file in the folder");
  }
  folder.write(index_name, R"({"weight_map":{}})");
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "names no shard");
}

TEST(checkpoint_says_what_a_folder_lacks) {
  const test::Folder folder;
  CHECK_THROWS(Checkpoint(folder.file("none")), ConfigError, "/none: No such file or directory");
  CHECK_THROWS(Checkpoint(folder.path()), ConfigError, "has no *.safetensors file (is the download complete?)");
  folder.write("m.gguf", "GGUF");
  CHECK_THROWS(Checkpoint(folder.path()), ConfigError, "GGUF files are not supported");
}

TEST(checkpoint_names_a_pointer_instead_of_a_shard) {
  const test::Folder folder;
  folder.write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "model.safetensors: this is a Git-LFS pointer");
  folder.write(index_name, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
  CHECK_THROWS(Checkpoint(folder.path()), FormatError, "index.json: this is a Git-LFS pointer");
}

TEST(read_text_file_refuses_what_is_too_long) {
  const test::Folder folder;
  folder.write("t", "12345");
  CHECK(flash_moe::format::read_text_file(folder.file("t"), 5) == "12345");
  CHECK_THROWS(flash_moe::format::read_text_file(folder.file("t"), 4), FormatError, "has 5 bytes, wanted at most 4");
}
