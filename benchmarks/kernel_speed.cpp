// How fast the products of each kernel table are, beside the memory's bound in the same run.
//   kernel_speed [seconds per figure, default 0.3] [part of a table's name] [threads, default all] [inputs, default 2048]
//   kernel_speed passes COUNT TABLE INPUTS FORMAT   only so many products of one row, for kernel_instructions.sh; prints bytes of one
// One row reads a matrix larger than the caches, and one that fits into the second-level caches of two cores: what the
// arithmetic alone would do (GB/s: bytes of codes, scales and biases); several rows multiply the latter (GMAC/s). Each
// figure is the best of its passes: on a shared machine the rest is the neighbours'.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/aligned_memory.h"
#include "base/memory_probe.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"

using namespace flash_moe;

namespace {

struct Format {
  const char* name;
  MatrixFormat format;
  int bits;
  int group;
  Dtype scale_dtype;
};

constexpr Format kFormats[] = {
    {"affine 2 g64", MatrixFormat::affine, 2, 64, Dtype::bf16}, {"affine 3 g64", MatrixFormat::affine, 3, 64, Dtype::bf16},
    {"affine 4 g64", MatrixFormat::affine, 4, 64, Dtype::bf16}, {"affine 4 g32", MatrixFormat::affine, 4, 32, Dtype::bf16},
    {"affine 6 g64", MatrixFormat::affine, 6, 64, Dtype::bf16}, {"affine 8 g64", MatrixFormat::affine, 8, 64, Dtype::bf16},
    {"mxfp4", MatrixFormat::mxfp4, 4, 32, Dtype::u8},           {"nvfp4", MatrixFormat::nvfp4, 4, 16, Dtype::u8},
    {"fp8 block", MatrixFormat::fp8_block, 8, 0, Dtype::bf16},  {"bf16", MatrixFormat::bf16, 16, 0, Dtype::f32},
};
constexpr int64_t kStreamedBytes = 1024 << 20;  // more than any last-level cache
constexpr int64_t kSeveralRowsOutputs = 2048;
constexpr int64_t kOutputsOfItem = 64;

struct StoredBytes {
  AlignedMemory memory;
  Matrix matrix;

  StoredBytes(const Format& format, int64_t rows, int64_t cols) {
    matrix.format = format.format;
    matrix.bits = static_cast<uint8_t>(format.bits);
    matrix.group = static_cast<uint16_t>(format.group);
    matrix.scale_dtype = format.scale_dtype;
    matrix.rows = rows;
    matrix.cols = cols;
    const auto data = static_cast<size_t>(matrix.data_bytes());
    const auto scales = static_cast<size_t>(matrix.scales_bytes());
    memory = AlignedMemory(data + 2 * scales, HugePages::if_possible);
    uint64_t state = 1;
    for (size_t i = 0; i + 8 <= data; i += 8) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const uint64_t word = ((state >> 8) & 0x0b0b0b0b0b0b0b0bu) | 0x3030303030303030u;  // of floats too: small, finite, not denormal
      std::memcpy(memory.data() + i, &word, 8);
    }
    std::memset(memory.data() + data, 0x3b, 2 * scales);
    matrix.data = memory.data();
    matrix.scales = memory.data() + data;
    matrix.biases = memory.data() + data + scales;
  }
};

struct Rows {
  AlignedMemory memory;
  size_t stride;

  Rows(const kernels::Kernels& table, int64_t count, int64_t cols) : stride(table.prepared_bytes(cols)) {
    memory = AlignedMemory(stride * static_cast<size_t>(count));
    std::vector<float> x(static_cast<size_t>(cols));
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < cols; ++i) x[static_cast<size_t>(i)] = static_cast<float>((i * 37 + r * 11) % 101 - 50) / 50.0f;
      table.prepare_row(x.data(), cols, memory.data() + static_cast<size_t>(r) * stride);
    }
  }
};

kernels::MatmulArgs product_args(const Matrix& matrix, const Rows& x, int64_t row_count, std::vector<float>& y) {
  y.resize(static_cast<size_t>(row_count * matrix.rows));
  kernels::MatmulArgs args;
  args.matrix = matrix;
  args.x = x.memory.data();
  args.x_stride = x.stride;
  args.row_count = row_count;
  args.y = y.data();
  args.y_stride = matrix.rows;
  args.out_end = matrix.rows;
  return args;
}

// Seconds of the fastest pass.
double best_pass(ThreadPool& pool, const kernels::Kernels& table, const Matrix& matrix, const Rows& x, int64_t row_count,
                 double seconds) {
  std::vector<float> y;
  const kernels::MatmulArgs args = product_args(matrix, x, row_count, y);
  using Clock = std::chrono::steady_clock;
  const Clock::time_point first = Clock::now();
  double best = 1e9;
  for (Clock::time_point now = first; std::chrono::duration<double>(now - first).count() < seconds;) {
    const Clock::time_point begin = now;
    pool.run((matrix.rows + kOutputsOfItem - 1) / kOutputsOfItem, [&](int64_t item) {
      kernels::MatmulArgs mine = args;
      mine.out_begin = item * kOutputsOfItem;
      mine.out_end = std::min(mine.out_begin + kOutputsOfItem, matrix.rows);
      table.matmul(mine);
    });
    now = Clock::now();
    best = std::min(best, std::chrono::duration<double>(now - begin).count());
  }
  return best;
}

void measure(const kernels::Kernels& table, int threads, double seconds, int64_t cols) {
  ThreadPool pool(threads);
  for (const Format& format : kFormats) {
    const Matrix one_row_of = [&] { Matrix m; m.bits = static_cast<uint8_t>(format.bits); m.cols = cols; return m; }();
    const StoredBytes streamed(format, kStreamedBytes / one_row_of.row_bytes() / kOutputsOfItem * kOutputsOfItem, cols);
    const double bound = probe_memory({.threads = threads, .seconds = seconds});
    const StoredBytes kept(format, kSeveralRowsOutputs, cols);
    const auto speed = [&](const StoredBytes& stored) {  // of one row
      return static_cast<double>(stored.matrix.total_bytes()) / best_pass(pool, table, stored.matrix, Rows(table, 1, cols), 1, seconds);
    };
    const double bytes_a_second = speed(streamed);
    std::printf("%-11s %-8s %d  %-13s %6.1f GB/s %4.0f %%  %7.1f   ", table.name,
                table.precision == kernels::Precision::fast ? "fast" : "float32", threads, format.name, bytes_a_second / 1e9,
                100 * bytes_a_second / bound, speed(kept) / 1e9);
    for (const int64_t rows : {4, 16, 64}) {
      const double best = best_pass(pool, table, kept.matrix, Rows(table, rows, cols), rows, seconds / 3);
      std::printf("  %7.1f", static_cast<double>(rows * kSeveralRowsOutputs * cols) / best / 1e9);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

// The products that a tool is to count. Returns the exit status.
int run_passes(int64_t count, const char* table_name, int64_t cols, const char* format_name) {
  for (auto table = kernels::available_kernels(kernels::Precision::fast); *table; ++table) {
    for (const Format& format : kFormats) {
      if (std::strcmp((*table)->name, table_name) != 0 || std::strcmp(format.name, format_name) != 0) continue;
      const StoredBytes stored(format, kSeveralRowsOutputs, cols);
      const Rows x(**table, 1, cols);
      std::vector<float> y;
      const kernels::MatmulArgs args = product_args(stored.matrix, x, 1, y);
      for (int64_t i = 0; i < count; ++i) (*table)->matmul(args);
      std::printf("%lld\n", static_cast<long long>(stored.matrix.total_bytes()));
      return 0;
    }
  }
  std::fprintf(stderr, "no table %s or no format %s here\n", table_name, format_name);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 6 && std::strcmp(argv[1], "passes") == 0)
    return run_passes(std::atoll(argv[2]), argv[3], std::atoll(argv[4]), argv[5]);
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.3;
  const char* part = argc > 2 ? argv[2] : "";
  const int threads = argc > 3 ? std::atoi(argv[3]) : usable_core_count();
  const int64_t cols = argc > 4 ? std::atoll(argv[4]) : 2048;
  std::printf("table       rows     threads  format  1 row, share of memory's speed, from cache   GMAC/s of 4, 16, 64 rows\n");
  for (const auto precision : {kernels::Precision::float32, kernels::Precision::fast}) {
    for (auto table = kernels::available_kernels(precision); *table; ++table) {
      if (std::strstr((*table)->name, part) != nullptr) measure(**table, threads, seconds, cols);
    }
  }
}
