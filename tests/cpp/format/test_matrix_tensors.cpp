#include "format/matrix_tensors.h"

#include <string>

#include "flash_moe/error.h"
#include "format/tensor_folder.h"
#include "test.h"

using flash_moe::Dtype;
using flash_moe::FormatError;
using flash_moe::MatrixFormat;
using namespace flash_moe::format;

namespace {

struct Found {
  test::Folder folder;
  std::optional<MatrixTensors> tensors;

  Found(const std::vector<test::Tensor>& all, const MatrixName& name, int64_t rows, int64_t cols,
        const std::string& config = "{}") {
    folder.write("model.safetensors", test::safetensors_bytes(all));
    const Checkpoint checkpoint(folder.path());
    tensors = find_matrix(checkpoint, QuantisationConfig(parse_json(config, "config.json"), "config.json"), name, rows, cols);
  }
};

// A quantised module "m" of [4, 64].
std::vector<test::Tensor> mlx(int64_t bits, int64_t group, Dtype scale, bool biases = true) {
  std::vector<test::Tensor> out = {test::pattern("m.weight", Dtype::u32, {4, 64 * bits / 32}),
                                   test::pattern("m.scales", scale, {4, 64 / group})};
  if (biases) out.push_back(test::pattern("m.biases", scale, {4, 64 / group}));
  return out;
}

std::string found_text(const std::vector<test::Tensor>& all, const std::string& config = "{}") {
  return format_text(Found(all, {"m"}, 4, 64, config).tensors->form);
}

}  // namespace

TEST(find_matrix_reads_plain_floats) {
  CHECK(found_text({test::pattern("m.weight", Dtype::bf16, {4, 64})}) == "bf16");
  CHECK(found_text({test::pattern("m.weight", Dtype::f16, {4, 64})}) == "f16");
  CHECK(found_text({test::pattern("m.weight", Dtype::f32, {4, 64})}) == "f32");
  CHECK(!Found({test::pattern("m.weight", Dtype::f32, {4, 64})}, {"n"}, 4, 64).tensors);
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::f32, {64, 4})}), FormatError, "has shape [64, 4], wanted [4, 64]");
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::i32, {4, 64})}), FormatError, "is I32, wanted BF16 or F16 or F32");
}

TEST(find_matrix_proves_bits_and_group_by_shape) {
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const int group : {32, 64}) {
      for (const Dtype scale : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
        const Found found(mlx(bits, group, scale), {"m"}, 4, 64);
        const auto& form = found.tensors->form;
        CHECK(form.format == MatrixFormat::affine && form.bits == bits && form.group == group && form.scale_dtype == scale);
        CHECK(form.data_bytes() == 4 * 64 * bits / 8 && found.tensors->biases);
      }
    }
  }
}

TEST(find_matrix_knows_the_micro_scaled_modes) {
  CHECK(found_text(mlx(4, 32, Dtype::u8, false)) == "mxfp4");
  CHECK(found_text(mlx(8, 32, Dtype::u8, false)) == "mxfp8");
  CHECK(found_text(mlx(4, 16, Dtype::u8, false)) == "nvfp4");
  CHECK(Found(mlx(4, 16, Dtype::u8, false), {"m"}, 4, 64).tensors->form.scale_dtype == Dtype::f8_e4m3);
}

TEST(find_matrix_rejects_quantisations_that_do_not_exist) {
  CHECK_THROWS(found_text(mlx(1, 32, Dtype::bf16)), FormatError, "1 bits in groups of 32");
  CHECK_THROWS(found_text(mlx(4, 16, Dtype::bf16)), FormatError, "4 bits in groups of 16");
  CHECK_THROWS(found_text(mlx(8, 16, Dtype::u8, false)), FormatError, "8 bits in groups of 16 with U8 scales");
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::u32, {4, 9}), test::pattern("m.scales", Dtype::bf16, {4, 2})}),
               FormatError, "is no quantisation of 64 inputs");
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::u32, {4, 8}), test::pattern("m.scales", Dtype::bf16, {4, 3})}),
               FormatError, "is no quantisation of 64 inputs");
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::u32, {4, 8}), test::pattern("m.scales", Dtype::bf16, {4, 0})}),
               FormatError, "is no quantisation of 64 inputs");
}

TEST(find_matrix_wants_scales_and_biases_that_fit) {
  auto all = mlx(4, 32, Dtype::bf16);
  CHECK_THROWS(found_text({all[0]}), FormatError, "m.scales is missing");
  CHECK_THROWS(found_text({all[0], all[1]}), FormatError, "m.biases is missing, wanted shape [4, 2]");
  CHECK_THROWS(found_text({all[0], all[1], test::pattern("m.biases", Dtype::f32, {4, 2})}), FormatError, "m.biases is F32, wanted BF16");
  CHECK_THROWS(found_text({all[0], test::pattern("m.scales", Dtype::i8, {4, 2}), all[2]}), FormatError, "m.scales is I8");
  CHECK_THROWS(found_text({all[0], test::pattern("m.scales", Dtype::bf16, {3, 2}), all[2]}), FormatError, "m.scales has shape [3, 2]");
}

TEST(find_matrix_rejects_quantised_rows_that_kernels_cannot_read) {
  CHECK_THROWS(Found({test::pattern("m.weight", Dtype::u32, {4, 6}), test::pattern("m.scales", Dtype::u8, {4, 3})}, {"m"}, 4, 48),
               FormatError, "has 48 inputs; only multiples of 32");
}

TEST(find_matrix_reads_block_fp8) {
  const auto scales = test::pattern("m.weight_scale_inv", Dtype::bf16, {2, 3});
  const Found found({test::pattern("m.weight", Dtype::f8_e4m3, {130, 288}), scales}, {"m"}, 130, 288);
  CHECK(format_text(found.tensors->form) == "fp8 128x128" && found.tensors->form.scales_bytes() == 12);
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::f8_e4m3, {4, 64})}), FormatError, "m.weight_scale_inv is missing");
}

TEST(find_matrix_reads_stacked_and_bare_tensors) {
  CHECK(Found({test::pattern("e.weight", Dtype::bf16, {3, 4, 64})}, {"e", false, 3}, 4, 64).tensors->form.rows == 4);
  CHECK(Found({test::pattern("e", Dtype::bf16, {3, 4, 64})}, {"e", true, 3}, 4, 64).tensors->form.rows == 4);
  CHECK(Found({test::pattern("e", Dtype::f8_e4m3, {3, 4, 64}), test::pattern("e_scale_inv", Dtype::f32, {3, 1, 1})},
              {"e", true, 3}, 4, 64).tensors->form.format == MatrixFormat::fp8_block);
  CHECK_THROWS(Found({test::pattern("e", Dtype::bf16, {2, 4, 64})}, {"e", true, 3}, 4, 64), FormatError, "wanted [3, 4, 64]");
}

TEST(config_and_shapes_must_agree) {
  const auto config = [](const std::string& inside) { return "{\"quantization\": {" + inside + "}}"; };
  const std::string four = "\"group_size\": 64, \"bits\": 4";
  CHECK(found_text(mlx(4, 64, Dtype::bf16), config(four)) == "affine 4-bit g64");
  CHECK(found_text(mlx(8, 32, Dtype::bf16), config(four + ", \"m\": {\"group_size\": 32, \"bits\": 8}")) == "affine 8-bit g32");
  // Modules that MLX could not divide stay plain and have no entry.
  CHECK(found_text({test::pattern("m.weight", Dtype::bf16, {4, 64})}, config(four)) == "bf16");
  CHECK_THROWS(found_text(mlx(8, 64, Dtype::bf16), config(four)), FormatError,
               "m.weight is affine 8-bit g64 by its shape, but config.json states affine 4-bit g64");
  CHECK_THROWS(found_text(mlx(4, 64, Dtype::bf16), config(four + ", \"m\": {\"group_size\": 64, \"bits\": 5}")), FormatError,
               "config.json states affine 5-bit g64");
  CHECK_THROWS(found_text(mlx(4, 64, Dtype::bf16), config(four + ", \"m\": false")), FormatError, "states not quantised");
  CHECK_THROWS(found_text({test::pattern("m.weight", Dtype::bf16, {4, 64})}, config(four + ", \"m\": {\"group_size\": 64, \"bits\": 4}")),
               FormatError, "is bf16 by its shape");
  CHECK_THROWS(found_text(mlx(4, 32, Dtype::bf16), config("\"group_size\": 32, \"bits\": 4, \"mode\": \"mxfp4\"")), FormatError,
               "config.json states mxfp4");
  CHECK(found_text(mlx(4, 32, Dtype::u8, false), config("\"group_size\": 32, \"bits\": 4, \"mode\": \"mxfp4\"")) == "mxfp4");
}

TEST(config_with_another_quantisation_is_refused) {
  const auto parse = [](const std::string& text) { QuantisationConfig(parse_json(text, "c"), "c"); };
  parse(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})");
  CHECK_THROWS(parse(R"({"quantization_config": {"quant_method": "gptq", "bits": 4}})"), FormatError, "is \"gptq\", which is not supported");
  CHECK_THROWS(parse(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}})"), FormatError, "must be [128, 128]");
  CHECK_THROWS(parse(R"({"quantization_config": {"quant_method": "fp8"}})"), FormatError, "weight_block_size is missing");
  CHECK_THROWS(parse(R"({"quantization": {"group_size": 64, "bits": 4, "mode": "int4"}})"), FormatError, "mode is \"int4\"");
  CHECK_THROWS(parse(R"({"quantization": {"bits": 4}})"), FormatError, "quantization.group_size is missing");
  CHECK_THROWS(parse(R"({"quantization": 4})"), FormatError, "quantization: wanted an object");
}
