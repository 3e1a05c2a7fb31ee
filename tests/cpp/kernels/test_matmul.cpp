// One list of cases, run over every table: against sums in double, against the reference bit for bit, and
// against itself in other splits.
#include <map>

#include "kernels/prepared_rows.h"
#include "test.h"

using namespace test;
using namespace flash_moe::kernels;

namespace {

// f32 sums in 16 accumulators over at most 2176 inputs: 136 roundings of 6e-8 each, random in sign.
constexpr double kFloat32Error = 1e-6;
// A block's 64 inputs are rounded to 1/32512 of their maximum; bf16 rounds each to 1/512 of itself. The inputs
// here hold values 30 times the rest, the bad case for blocks.
constexpr double kShareOfBf16Error = 0.5;

const char* precision_name(const Kernels& k) { return k.precision == Precision::fast ? "fast" : "float32"; }

bool report(bool good, const Kernels& k, const FormatCase& format, int64_t rows, int64_t cols, const char* what) {
  if (!good) {
    std::printf("%s %s, %s, [%lld, %lld]: %s\n", k.name, precision_name(k), format.name().c_str(),
                static_cast<long long>(rows), static_cast<long long>(cols), what);
  }
  return good;
}

bool is_quantised(const FormatCase& format) { return format.format > MatrixFormat::bf16; }

// Column counts that end in every kind of tail the format allows.
std::vector<int64_t> col_counts(const FormatCase& format) {
  if (!is_quantised(format)) return {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 47, 63, 64, 65, 127, 130, 257, 520};
  if (format.format == MatrixFormat::fp8_block) return {32, 64, 96, 128, 160, 256, 416, 1056};
  const int64_t unit = format.group < 32 ? 32 : format.group;
  return {unit, 2 * unit, 3 * unit, 4 * unit, 5 * unit, 7 * unit, 8 * unit, 512, 1024, 1024 + unit, 2048, 2048 + unit};
}

// About `cols`, with a last group that fills no vector of any table.
int64_t odd_cols(const FormatCase& format, int64_t cols) {
  const int64_t unit = format.group < 32 ? 32 : format.group;
  return cols / unit / 2 * 2 * unit + unit;
}

double bf16_rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return static_cast<double>(x);
}

struct Errors {
  double relative_max = 0;  // to the sum of magnitudes
  double square = 0;
  double bf16_square = 0;
};

Errors errors_of(const std::vector<float>& y, const StoredMatrix& stored, const InputRows& x) {
  const Matrix& m = stored.matrix();
  Errors errors;
  for (int64_t r = 0; r < x.count(); ++r) {
    for (int64_t o = 0; o < m.rows; ++o) {
      double sum = 0, magnitude = 1e-30, bf16_sum = 0;
      for (int64_t i = 0; i < m.cols; ++i) {
        const double w = stored.values[static_cast<size_t>(o * m.cols + i)];
        sum += w * static_cast<double>(x.row(r)[i]);
        magnitude += std::abs(w * static_cast<double>(x.row(r)[i]));
        bf16_sum += w * bf16_rounded(x.row(r)[i]);
      }
      const double error = static_cast<double>(y[static_cast<size_t>(r * m.rows + o)]) - sum;
      errors.relative_max = std::max(errors.relative_max, std::abs(error) / magnitude);
      errors.square += error * error;
      errors.bf16_square += (bf16_sum - sum) * (bf16_sum - sum);
    }
  }
  return errors;
}

}  // namespace

TEST(every_table_is_near_the_sum_in_double) {
  for (const FormatCase& format : all_formats()) {
    for (int64_t cols : col_counts(format)) {
      const StoredMatrix stored(format, 9, cols, 11);
      const InputRows x(3, cols, 12);
      for (const Kernels* k : all_tables()) {
        const Errors e = errors_of(PreparedRows(*k, x).matmul(stored.matrix()), stored, x);
        const bool exact_input = k->precision == Precision::float32 || !is_quantised(format);
        const bool good = exact_input ? e.relative_max < kFloat32Error
                                      : e.square < kShareOfBf16Error * kShareOfBf16Error * e.bf16_square;
        CHECK(report(good, *k, format, 9, cols, "far from the sum in double"));
      }
    }
  }
}

TEST(every_table_gives_the_bits_of_the_reference) {
  for (const FormatCase& format : all_formats()) {
    for (int64_t cols : col_counts(format)) {
      const int64_t rows = 5 + cols % 37;
      const StoredMatrix stored(format, rows, cols, 21);
      for (int64_t count : {int64_t{1}, int64_t{5}}) {
        const InputRows x(count, cols, 22);
        std::map<Precision, std::vector<float>> want;
        for (const Precision precision : {Precision::float32, Precision::fast})
          want[precision] = PreparedRows(reference_kernels(precision), x).matmul(stored.matrix());
        for (const Kernels* k : tables_beside_reference()) {
          const bool good = same_bits(PreparedRows(*k, x).matmul(stored.matrix()), want[k->precision]);
          CHECK(report(good, *k, format, rows, cols, "bits differ from the reference"));
        }
      }
    }
  }
}

TEST(rows_together_have_the_bits_of_each_alone) {
  for (const FormatCase& format : all_formats()) {
    const int64_t cols = odd_cols(format, 600);
    const StoredMatrix stored(format, 37, cols, 31);
    const InputRows x(50, cols, 32);
    for (const Kernels* k : tables_beside_reference()) {
      const PreparedRows prepared(*k, x);
      std::vector<std::vector<float>> alone;
      for (int32_t r = 0; r < 50; ++r) alone.push_back(prepared.matmul(stored.matrix(), 0, 37, {r}));
      for (int32_t count : {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 23, 31, 32, 33, 47, 48, 50}) {
        std::vector<int32_t> gather;
        for (int32_t r = 0; r < count; ++r) gather.push_back((r * 7 + count) % 50);
        const auto y = prepared.matmul(stored.matrix(), 0, 37, gather);
        bool good = true;
        for (size_t r = 0; r < gather.size(); ++r) {
          const auto& want = alone[static_cast<size_t>(gather[r])];
          good = good && std::memcmp(y.data() + r * 37, want.data(), 37 * sizeof(float)) == 0;
        }
        CHECK(report(good, *k, format, 37, cols, "a row's bits depend on its neighbours"));
      }
    }
  }
}

TEST(any_split_of_the_outputs_gives_the_same_bits) {
  for (const FormatCase& format : all_formats()) {
    const int64_t cols = odd_cols(format, 350);
    const int64_t rows = format.format == MatrixFormat::fp8_block ? 150 : 53;
    const StoredMatrix stored(format, rows, cols, 41);
    for (int64_t count : {int64_t{1}, int64_t{19}}) {
      const InputRows x(count, cols, 42);
      for (const Kernels* k : tables_beside_reference()) {
        const PreparedRows prepared(*k, x);
        const auto whole = prepared.matmul(stored.matrix());
        for (int64_t cut : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{5}, int64_t{15}, int64_t{16},
                            int64_t{17}, int64_t{31}, int64_t{33}, rows - 1, rows}) {
          const auto low = prepared.matmul(stored.matrix(), 0, cut);
          const auto high = prepared.matmul(stored.matrix(), cut, rows);
          bool good = true;
          for (size_t i = 0; i < whole.size(); ++i) {
            const bool in_low = static_cast<int64_t>(i) % rows < cut;
            const float& mine = in_low ? low[i] : high[i];
            const float& other = in_low ? high[i] : low[i];
            good = good && std::memcmp(&mine, &whole[i], 4) == 0 && other == PreparedRows::kUntouched;
          }
          CHECK(report(good, *k, format, rows, cols, "bits depend on the split, or an element outside it changed"));
        }
      }
    }
  }
}

TEST(every_alignment_of_a_matrix_gives_the_same_bits) {
  for (const FormatCase& format : all_formats()) {
    const int64_t cols = odd_cols(format, 280);
    const StoredMatrix aligned(format, 18, cols, 53, 0);
    std::vector<StoredMatrix> shifted;
    for (size_t slack = 1; slack < 64; ++slack) shifted.emplace_back(format, 18, cols, 53, slack);
    for (const int64_t count : {int64_t{1}, int64_t{18}}) {
      const InputRows x(count, cols, 52);
      for (const Kernels* k : tables_beside_reference()) {
        const PreparedRows prepared(*k, x);
        const auto want = prepared.matmul(aligned.matrix());
        for (const StoredMatrix& stored : shifted) {
          const bool good = same_bits(prepared.matmul(stored.matrix()), want);
          CHECK(report(good, *k, format, 18, cols, "bits depend on the alignment"));
        }
      }
    }
  }
}

TEST(a_block_that_is_not_finite_gives_nan_and_leaves_other_rows_alone) {
  const FormatCase format{MatrixFormat::affine, 4, 64, Dtype::bf16};
  const StoredMatrix stored(format, 20, 256, 61);
  for (float bad : {INFINITY, -INFINITY, NAN}) {
    InputRows x(20, 256, 62);
    const InputRows good = x;
    x.row(3)[130] = bad;
    for (const Kernels* k : all_tables()) {
      const auto y = PreparedRows(*k, x).matmul(stored.matrix());
      const auto want = PreparedRows(*k, good).matmul(stored.matrix());
      for (size_t i = 0; i < y.size(); ++i) {
        CHECK(i / 20 == 3 ? !std::isfinite(y[i]) : std::memcmp(&y[i], &want[i], 4) == 0);
      }
    }
  }
}

TEST(an_f8_nan_makes_its_output_nan_and_leaves_the_others_alone) {
  for (const FormatCase& format : {FormatCase{MatrixFormat::fp8_block, 8, 0, Dtype::bf16}, FormatCase{MatrixFormat::mxfp8, 8, 32, Dtype::u8}}) {
    const int64_t cols = 160;
    const StoredMatrix stored(format, 9, cols, 63);  // rows by fours and one alone
    for (int64_t count : {int64_t{1}, int64_t{7}}) {
      const InputRows x(count, cols, 64);
      for (const Kernels* k : all_tables()) {
        const PreparedRows prepared(*k, x);
        const auto want = prepared.matmul(stored.matrix());
        for (int64_t at : {0, 31, 32, 79, 144, 159}) {
          for (size_t row : {0u, 2u, 7u, 8u}) {
            Matrix m = stored.matrix();
            std::vector<uint8_t> bytes(m.data, m.data + m.data_bytes());
            bytes[row * static_cast<size_t>(cols) + static_cast<size_t>(at)] = row % 2 == 0 ? 0x7f : 0xff;
            m.data = bytes.data();
            const auto y = prepared.matmul(m);
            for (size_t i = 0; i < y.size(); ++i) {
              CHECK(i % 9 == row ? std::isnan(y[i]) : std::memcmp(&y[i], &want[i], 4) == 0);
            }
          }
        }
      }
    }
  }
}

TEST(inputs_of_any_magnitude_keep_their_bits_across_tables) {
  const FormatCase format{MatrixFormat::affine, 8, 32, Dtype::f32};
  const StoredMatrix stored(format, 17, 192, 71);
  for (float magnitude : {0.0f, 1e-45f, 1e-38f, 7.8e-31f, 1e-20f, 1.0f, 1e20f, 1e36f}) {
    InputRows x(17, 192, 72);
    for (int64_t i = 0; i < 17 * 192; ++i) x.row(0)[i] *= magnitude;
    for (const Kernels* k : all_tables()) {
      const auto want = PreparedRows(reference_kernels(k->precision), x).matmul(stored.matrix());
      CHECK(same_bits(PreparedRows(*k, x).matmul(stored.matrix()), want));
    }
  }
}
