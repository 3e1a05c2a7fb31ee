// Norms, activations, the convolution and row conversions: over every length with a tail, against double and
// against the reference bit for bit.
#include "kernels/prepared_rows.h"
#include "test.h"

using namespace test;
using namespace flash_moe::kernels;

namespace {

const int64_t kLengths[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 127, 512, 1000, 2048};

// `n` floats that end at a guard page.
struct Floats {
  explicit Floats(int64_t n) : bytes(static_cast<size_t>(n) * 4), data(reinterpret_cast<float*>(bytes.data())), size(n) {}
  GuardedBytes bytes;
  float* data;
  int64_t size;

  void fill(uint32_t seed, float spread) const {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, spread);
    for (int64_t i = 0; i < size; ++i) data[i] = normal(random);
  }
  bool same(const Floats& other) const { return std::memcmp(data, other.data, static_cast<size_t>(size) * 4) == 0; }
};

bool near(double got, double want, double relative) {
  return std::abs(got - want) <= relative * std::abs(want) + 1e-37;
}

const Kernels& reference() { return reference_kernels(Precision::float32); }

}  // namespace

TEST(rms_norm_divides_by_the_root_of_the_mean_square) {
  for (int64_t n : kLengths) {
    Floats x(n), weight(n), y(n), want(n);
    x.fill(1, 3);
    weight.fill(2, 1);
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x.data[i]) * static_cast<double>(x.data[i]);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(1e-6f));
    reference().rms_norm(want.data, x.data, weight.data, 1e-6f, n);
    for (const Kernels* k : all_tables()) {
      k->rms_norm(y.data, x.data, weight.data, 1e-6f, n);
      for (int64_t i = 0; i < n; ++i) {
        CHECK(near(y.data[i], static_cast<double>(x.data[i]) * scale * static_cast<double>(weight.data[i]), 5e-7));
      }
      CHECK(y.same(want));
      std::memcpy(y.data, x.data, static_cast<size_t>(n) * 4);
      k->rms_norm(y.data, y.data, weight.data, 1e-6f, n);
      CHECK(y.same(want));
    }
  }
}

TEST(silu_mul_is_right_to_rounding_at_every_magnitude) {
  for (int64_t n : kLengths) {
    Floats gate(n), up(n), y(n), want(n);
    gate.fill(3, 20);
    up.fill(4, 1);
    reference().silu_mul(want.data, gate.data, up.data, n);
    for (const Kernels* k : all_tables()) {
      k->silu_mul(y.data, gate.data, up.data, n);
      for (int64_t i = 0; i < n; ++i) {
        const double g = gate.data[i];
        CHECK(near(y.data[i], g / (1 + std::exp(-g)) * static_cast<double>(up.data[i]), 5e-7));
      }
      CHECK(y.same(want));
      std::memcpy(y.data, gate.data, static_cast<size_t>(n) * 4);
      k->silu_mul(y.data, y.data, up.data, n);
      CHECK(y.same(want));
    }
  }
}

TEST(silu_mul_saturates_and_keeps_nan) {
  const float gate[] = {INFINITY, -INFINITY, NAN, 1e30f, -1e30f, 0.0f, -0.0f, 88.5f, -88.5f, -104.0f};
  const float up[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  for (const Kernels* k : all_tables()) {
    float y[10];
    k->silu_mul(y, gate, up, 10);
    CHECK(y[0] == INFINITY);
    CHECK(std::isnan(y[2]));
    CHECK(y[3] == 1e30f);
    CHECK(y[4] <= 0 && y[4] > -1e-7f);
    CHECK(y[5] == 0 && y[6] == 0);
    CHECK(y[7] == 88.5f);
    CHECK(y[8] <= 0 && y[8] > -1e-35f);
    CHECK(y[9] <= 0 && y[9] > -1e-35f);
  }
}

TEST(axpy_adds_with_one_rounding) {
  for (int64_t n : kLengths) {
    Floats x(n), start(n), y(n);
    x.fill(5, 1);
    start.fill(6, 1);
    for (const Kernels* k : all_tables()) {
      std::memcpy(y.data, start.data, static_cast<size_t>(n) * 4);
      k->axpy(y.data, x.data, 0.37f, n);
      for (int64_t i = 0; i < n; ++i) CHECK(y.data[i] == std::fma(0.37f, x.data[i], start.data[i]));
    }
  }
}

TEST(conv_silu_weighs_the_window_oldest_first) {
  for (int64_t n : kLengths) {
    for (int64_t taps : {1, 2, 4, 5}) {
      std::vector<Floats> rows;
      std::vector<const float*> window;
      for (int64_t j = 0; j < taps; ++j) {
        rows.emplace_back(n);
        rows.back().fill(static_cast<uint32_t>(7 + j), 1);
        window.push_back(rows.back().data);
      }
      Floats weight(n * taps), y(n), want(n);
      weight.fill(8, 1);
      reference().conv_silu(want.data, window.data(), weight.data, taps, n);
      for (const Kernels* k : all_tables()) {
        k->conv_silu(y.data, window.data(), weight.data, taps, n);
        for (int64_t c = 0; c < n; ++c) {
          double sum = 0;
          for (int64_t j = 0; j < taps; ++j) {
            sum += static_cast<double>(window[static_cast<size_t>(j)][c]) * static_cast<double>(weight.data[j * n + c]);
          }
          CHECK(std::abs(y.data[c] - sum / (1 + std::exp(-sum))) < 2e-6);
        }
        CHECK(y.same(want));
      }
    }
  }
}

TEST(f32_to_bf16_rounds_to_nearest_even_and_keeps_nan) {
  const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f7fffff, 0x7f800000, 0xff800000,
                           0x7f800001, 0x7fffffff, 0xffc00000, 0x00000001, 0x80008000, 0x00018000, 0x7f7f8000};
  const uint16_t want[] = {0x3f80, 0x3f82, 0x3f81, 0x3f80, 0x7f80, 0x7f80, 0xff80,
                           0x7fc0, 0x7fff, 0xffc0, 0x0000, 0x8000, 0x0002, 0x7f80};
  for (const Kernels* k : all_tables()) {
    for (size_t repeat = 1; repeat <= 5; ++repeat) {
      std::vector<float> x;
      for (size_t i = 0; i < 14 * repeat; ++i) {
        float value;
        std::memcpy(&value, &bits[i % 14], 4);
        x.push_back(value);
      }
      std::vector<uint16_t> y(x.size() + 1, 0x1234);
      k->f32_to_bf16(y.data(), x.data(), static_cast<int64_t>(x.size()));
      for (size_t i = 0; i < x.size(); ++i) CHECK(y[i] == want[i % 14]);
      CHECK(y.back() == 0x1234);
    }
  }
}

TEST(dequantise_row_rounds_each_value_once) {
  for (const FormatCase& format : all_formats()) {
    for (int64_t cols : {128, 384, 640}) {
      const StoredMatrix stored(format, 130, cols, 9);
      Floats y(cols), want(cols);
      for (int64_t row : {0, 1, 127, 128, 129}) {
        reference().dequantise_row(want.data, stored.matrix(), row);
        for (int64_t i = 0; i < cols; ++i) {
          CHECK(want.data[i] == static_cast<float>(stored.values[static_cast<size_t>(row * cols + i)]));
        }
        for (const Kernels* k : all_tables()) {
          k->dequantise_row(y.data, stored.matrix(), row);
          CHECK(y.same(want));
        }
      }
    }
  }
}

TEST(dequantise_row_reads_unquantised_rows_of_any_length) {
  for (MatrixFormat kind : {MatrixFormat::f32, MatrixFormat::f16, MatrixFormat::bf16}) {
    for (int64_t cols : kLengths) {
      const StoredMatrix stored({kind, kind == MatrixFormat::f32 ? 32 : 16, 0, Dtype::f32}, 3, cols, 10);
      Floats y(cols);
      for (const Kernels* k : all_tables()) {
        for (int64_t row = 0; row < 3; ++row) {
          k->dequantise_row(y.data, stored.matrix(), row);
          for (int64_t i = 0; i < cols; ++i) {
            CHECK(static_cast<double>(y.data[i]) == stored.values[static_cast<size_t>(row * cols + i)]);
          }
        }
      }
    }
  }
}

TEST(f16_infinities_and_nans_survive) {
  const uint16_t bits[] = {0x7c00, 0xfc00, 0x7e00, 0x0001, 0x8001, 0x03ff, 0x7bff, 0x8000};
  for (const Kernels* k : all_tables()) {
    Matrix m;
    m.format = MatrixFormat::f16;
    m.bits = 16;
    m.rows = 1;
    m.cols = 8;
    m.data = reinterpret_cast<const uint8_t*>(bits);
    float y[8];
    k->dequantise_row(y, m, 0);
    CHECK(y[0] == INFINITY && y[1] == -INFINITY && std::isnan(y[2]));
    CHECK(y[3] == 0x1p-24f && y[4] == -0x1p-24f && y[5] == 1023 * 0x1p-24f && y[6] == 65504.0f);
    CHECK(y[7] == 0 && std::signbit(y[7]));
  }
}

TEST(f8_nan_stays_nan_and_subnormals_count) {
  alignas(64) uint8_t bytes[256];
  for (int i = 0; i < 256; ++i) bytes[i] = static_cast<uint8_t>(i);
  const float scales[2] = {2.0f, 0.5f};
  Matrix m;
  m.format = MatrixFormat::fp8_block;
  m.bits = 8;
  m.rows = 1;
  m.cols = 256;
  m.data = bytes;
  m.scales = reinterpret_cast<const uint8_t*>(scales);
  for (const Kernels* k : all_tables()) {
    float y[256];
    k->dequantise_row(y, m, 0);
    for (uint32_t i = 0; i < 256; ++i) {
      const bool nan = (i & 0x7f) == 0x7f;
      CHECK(nan ? std::isnan(y[i]) : static_cast<double>(y[i]) == float_bits_value(i, 4, 3) * (i < 128 ? 2 : 0.5));
    }
  }
}
