#include "format/affine.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "test.h"

using flash_moe::Dtype;
using flash_moe::Matrix;
using flash_moe::MatrixFormat;
using flash_moe::bf16_to_f32;
using flash_moe::f16_to_f32;
using flash_moe::f32_to_bf16;
using namespace flash_moe::format;

namespace {

struct Row {
  Matrix form;
  std::vector<uint8_t> data, scales, biases;
  bool fits = false;

  Row(const std::vector<float>& values, int bits, int group, Dtype scale = Dtype::f32) {
    form.format = MatrixFormat::affine;
    form.bits = static_cast<uint8_t>(bits);
    form.group = static_cast<uint16_t>(group);
    form.scale_dtype = scale;
    form.rows = 1;
    form.cols = static_cast<int64_t>(values.size());
    data.resize(static_cast<size_t>(form.data_bytes()));
    scales.resize(static_cast<size_t>(form.scales_bytes()));
    biases.resize(scales.size());
    fits = quantise_affine_row(values.data(), form, {data.data(), scales.data(), biases.data()});
    form.data = data.data();
    form.scales = scales.data();
    form.biases = biases.data();
  }
  float scale(size_t group = 0) const { return at(scales, group); }
  float bias(size_t group = 0) const { return at(biases, group); }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<size_t>(form.cols));
    dequantise_row(form, 0, out.data());
    return out;
  }

 private:
  static float at(const std::vector<uint8_t>& raw, size_t i) {
    float value;
    std::memcpy(&value, raw.data() + 4 * i, 4);
    return value;
  }
};

// 32 values: those given, then zeros.
std::vector<float> padded(std::vector<float> values, size_t count = 32) {
  values.resize(count, 0.0f);
  return values;
}

}  // namespace

TEST(affine_stores_the_larger_end_exactly_and_zero_as_a_code) {
  const Row positive(padded({3.1f, -1.0f}), 4, 32);
  // step 4.1/15 from the top: code 11 is nearest to zero, so the scale becomes -3.1/11.
  CHECK(positive.fits && positive.bias() == 3.1f && positive.scale() == 3.1f / -11.0f);
  CHECK(positive.values()[0] == 3.1f && std::fabs(positive.values()[2]) < 1e-6f);
  const Row negative(padded({1.0f, -3.1f}), 4, 32);
  CHECK(negative.bias() == -3.1f && negative.scale() == -3.1f / -11.0f);
  CHECK((negative.data[0] & 15) == 15 && (negative.data[0] >> 4) == 0);
}

TEST(affine_of_constant_groups) {
  const Row zeros(padded({}), 4, 32);
  CHECK(zeros.fits && zeros.bias() == 0.0f && zeros.values()[5] == 0.0f);
  const Row constant(std::vector<float>(32, -0.75f), 2, 32);
  for (const float value : constant.values()) CHECK(value == -0.75f);
}

TEST(affine_codes_are_a_little_endian_bit_stream) {
  std::vector<float> values(32);
  for (size_t i = 0; i < 32; ++i) values[i] = static_cast<float>(i % 8) - 7.0f;  // -7 .. 0: codes 0 .. 7 at 3 bits
  const Row row(values, 3, 32);
  CHECK(row.bias() == -7.0f && row.scale() == 1.0f);
  // Codes 0 1 2 3 4 5 6 7, lowest bits first: 0b10001000 0b11000110 0b11111010.
  CHECK(row.data[0] == 0x88 && row.data[1] == 0xc6 && row.data[2] == 0xfa && row.data[3] == 0x88);
}

TEST(affine_round_trips_every_width_within_a_step) {
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for (const int group : {32, 64, 128}) {
      std::vector<float> values(256);
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 2654435761u) % 1000) / 500.0f - 1.0f;
      const Row row(values, bits, group);
      const std::vector<float> back = row.values();
      // Half a step, and the rest by which the adjusted scale misses the far end.
      const float step = 2.0f / static_cast<float>((1 << bits) - 1);
      for (size_t i = 0; i < values.size(); ++i) CHECK(std::fabs(back[i] - values[i]) <= step);
    }
  }
}

TEST(affine_refuses_what_is_not_finite_or_does_not_fit) {
  CHECK(!Row(padded({std::nanf("")}), 4, 32).fits);
  CHECK(!Row(padded({1.0f, std::numeric_limits<float>::infinity()}), 4, 32).fits);
  CHECK(!Row(padded({1e6f}), 4, 32, Dtype::f16).fits);
  CHECK(Row(padded({1e6f}), 4, 32, Dtype::bf16).fits);
}

TEST(f16_rounds_to_nearest_even_over_all_halves) {
  for (uint32_t half = 0; half < 0x7c00u; ++half) {
    const float value = f16_to_f32(static_cast<uint16_t>(half));
    CHECK(f32_to_f16(value) == half && f32_to_f16(-value) == (half | 0x8000u));
    // The middle to the next one goes to the even one.
    const float next = half == 0x7bffu ? 65536.0f : f16_to_f32(static_cast<uint16_t>(half + 1));
    const uint32_t even = half % 2 == 0 ? half : half + 1;
    CHECK(f32_to_f16((value + next) / 2) == even);
    CHECK(f32_to_f16(std::nextafter((value + next) / 2, 0.0f)) == half);
  }
  CHECK(f32_to_f16(std::numeric_limits<float>::infinity()) == 0x7c00u && f32_to_f16(1e30f) == 0x7c00u);
  CHECK(std::isnan(f16_to_f32(f32_to_f16(std::nanf("")))));
}

TEST(dequantise_row_reads_every_format) {
  Matrix matrix;
  matrix.rows = 2;
  matrix.cols = 32;
  std::vector<float> out(32);
  const std::vector<uint8_t> codes(2 * 32, 0x38 + 4);  // E4M3 1.5; as nibbles 12 and 3
  const std::vector<uint8_t> powers = {127, 129, 126, 128};
  matrix.data = codes.data();
  matrix.scales = powers.data();
  matrix.bits = 8;
  matrix.group = 32;
  matrix.scale_dtype = Dtype::u8;
  matrix.format = MatrixFormat::mxfp8;
  dequantise_row(matrix, 1, out.data());
  CHECK(out[0] == 1.5f * 4.0f && out[31] == 6.0f);
  matrix.format = MatrixFormat::mxfp4;
  matrix.bits = 4;
  dequantise_row(matrix, 1, out.data());
  CHECK(out[0] == -2.0f * 4.0f && out[1] == 1.5f * 4.0f);
  matrix.format = MatrixFormat::nvfp4;
  matrix.group = 16;
  matrix.scale_dtype = Dtype::f8_e4m3;
  const std::vector<uint8_t> small = {0x38, 0x40, 0x30, 0x38};  // 1 2 0.5 1
  matrix.scales = small.data();
  dequantise_row(matrix, 0, out.data());
  CHECK(out[0] == -2.0f && out[16] == -4.0f && out[17] == 3.0f);
  matrix.format = MatrixFormat::fp8_block;
  matrix.bits = 8;
  matrix.group = 0;
  matrix.scale_dtype = Dtype::bf16;
  const uint16_t quarter = f32_to_bf16(0.25f);
  matrix.scales = reinterpret_cast<const uint8_t*>(&quarter);
  dequantise_row(matrix, 1, out.data());
  CHECK(out[7] == 0.375f);
}
