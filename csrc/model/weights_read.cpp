#include "model/weights_read.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"
#include "flash_moe/error.h"

namespace flash_moe::model {
namespace {

using format::TensorInfo;

constexpr uint64_t task_bytes_max = 8 << 20;
constexpr auto progress_interval = std::chrono::milliseconds(50);

// A piece of work that any thread may do, disjoint from all others.
struct Task {
  uint64_t bytes = 0;  // of progress
  std::function<void()> run;
};

// DESIGN: workers take tasks by an atomic counter; the first error stops the taking and is kept under the mutex. Only the
// calling thread talks to `progress`, so that the callback may need a lock that its thread holds (Python's). Every
// worker is joined before run() returns or throws.
class TaskRunner {
 public:
  TaskRunner(std::vector<Task> tasks, const ByteProgress& progress) : tasks_(std::move(tasks)), progress_(progress) {
    for (const Task& task : tasks_) bytes_total_ += task.bytes;
  }

  void run(int thread_count) {
    if (progress_ && progress_(0, bytes_total_)) throw CancelledError("loading the model was cancelled");
    std::vector<std::thread> threads;
    start(threads, std::min<size_t>(tasks_.size(), static_cast<size_t>(std::max(thread_count, 1))));
    watch();
    for (std::thread& thread : threads) thread.join();
    if (error_) std::rethrow_exception(error_);
    if (cancelled_) throw CancelledError("loading the model was cancelled");
    if (progress_) progress_(bytes_total_, bytes_total_);
  }

 private:
  // As many threads as the system gives; with none, the tasks run here.
  void start(std::vector<std::thread>& threads, size_t count) {
    threads.reserve(count);
    running_ = 1;  // held by this function: workers cannot bring it to 0 before all are started
    for (size_t i = 0; i < count; ++i) {
      {
        const std::lock_guard lock(mutex_);
        ++running_;
      }
      try {
        threads.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        const std::lock_guard lock(mutex_);
        --running_;
        break;
      }
    }
    if (threads.empty()) {
      const std::lock_guard lock(mutex_);
      ++running_;
    }
    if (threads.empty()) work();
    const std::lock_guard lock(mutex_);
    --running_;
  }

  void work() {
    while (!stop_.load()) {
      const size_t i = next_.fetch_add(1);
      if (i >= tasks_.size()) break;
      try {
        tasks_[i].run();
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
        stop_.store(true);
      }
      bytes_done_.fetch_add(tasks_[i].bytes);
    }
    const std::lock_guard lock(mutex_);
    --running_;
    changed_.notify_all();
  }

  void watch() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, progress_interval, [this] { return running_ == 0; })) {
      if (!progress_ || cancelled_) continue;
      lock.unlock();
      try {
        cancelled_ = progress_(bytes_done_.load(), bytes_total_);
      } catch (...) {
        stop_.store(true);
        lock.lock();
        if (!error_) error_ = std::current_exception();
        continue;
      }
      if (cancelled_) stop_.store(true);
      lock.lock();
    }
  }

  std::vector<Task> tasks_;
  const ByteProgress& progress_;
  uint64_t bytes_total_ = 0;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> bytes_done_{0};
  bool cancelled_ = false;  // of the calling thread
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t running_ = 0;
  std::exception_ptr error_;
};

class Reader {
 public:
  Reader(const ResidentPlan& plan, const std::vector<std::shared_ptr<io::File>>& files, uint8_t* memory)
      : plan_(plan), files_(files), memory_(memory) {}

  std::vector<Task> tasks() {
    for (const MatrixJob& job : plan_.matrices) {
      if (job.widen) {
        tasks_.push_back({static_cast<uint64_t>(job.form.data_bytes()), [this, &job] { widen_fp8(job); }});
        continue;
      }
      add_part(job, 0, job.tensors.data, job.form.row_bytes(), 1, false);
      const int64_t rows_per_scale = job.form.format == MatrixFormat::fp8_block ? 128 : 1;
      add_part(job, 1, job.tensors.scales, job.form.scale_row_bytes(), rows_per_scale, true);
      add_part(job, 2, job.tensors.biases, job.form.scale_row_bytes(), 1, true);
    }
    for (const VectorJob& job : plan_.vectors) {
      tasks_.push_back({job.tensor->bytes, [this, &job] { convert(job); }});
    }
    return std::move(tasks_);
  }

  std::vector<uint8_t> whole(const TensorInfo& tensor) const {
    std::vector<uint8_t> raw(tensor.bytes);
    files_[tensor.file]->read_exact(raw.data(), raw.size(), tensor.offset);
    return raw;
  }

 private:
  // One of a matrix's tensors, run of rows by run of rows, in tasks of bounded size.
  void add_part(const MatrixJob& job, size_t part, const TensorInfo* tensor, int64_t row_bytes,
                int64_t rows_per_row, bool is_scale) {
    if (!tensor) return;
    uint8_t* out = memory_ + job.offsets[part];
    for (const RowRun& run : job.runs) {
      const int64_t begin = run.begin / rows_per_row;
      const int64_t count = (run.count + rows_per_row - 1) / rows_per_row;
      uint64_t offset = tensor->offset + static_cast<uint64_t>(begin * row_bytes);
      uint64_t left = static_cast<uint64_t>(count * row_bytes);
      while (left > 0) {
        const uint64_t bytes = std::min(left, task_bytes_max);
        const io::File* file = files_[tensor->file].get();
        tasks_.push_back({bytes, [file, out, bytes, offset, is_scale, dtype = job.form.scale_dtype, &job] {
                            file->read_exact(out, bytes, offset);
                            if (is_scale) check_finite(out, bytes, dtype, file->path() + ": scales of " + job.name);
                          }});
        offset += bytes;
        out += bytes;
        left -= bytes;
      }
    }
  }

  void widen_fp8(const MatrixJob& job) const {
    const std::vector<uint8_t> codes = whole(*job.tensors.data);
    const std::vector<uint8_t> raw_scales = whole(*job.tensors.scales);
    const std::string name = files_[job.tensors.scales->file]->path() + ": scales of " + job.name;
    check_finite(raw_scales.data(), raw_scales.size(), job.tensors.scales->dtype, name);
    const std::vector<float> scales = widen_floats(raw_scales, job.tensors.scales->dtype);
    const int64_t cols = job.form.cols;
    const int64_t blocks = (cols + 127) / 128;
    float* out = reinterpret_cast<float*>(memory_ + job.offsets[0]);
    for (const RowRun& run : job.runs) {
      for (int64_t row = run.begin; row < run.begin + run.count; ++row) {
        for (int64_t col = 0; col < cols; ++col) {
          const float scale = scales[static_cast<size_t>(row / 128 * blocks + col / 128)];
          *out++ = f8_e4m3_to_f32(codes[static_cast<size_t>(row * cols + col)]) * scale;
        }
      }
    }
  }

  void convert(const VectorJob& job) const {
    const std::vector<uint8_t> raw = whole(*job.tensor);
    const std::string name = files_[job.tensor->file]->path() + ": " + job.name;
    check_finite(raw.data(), raw.size(), job.tensor->dtype, name);
    const std::vector<float> values = widen_floats(raw, job.tensor->dtype);
    float* out = reinterpret_cast<float*>(memory_ + job.offset);
    const auto columns = static_cast<size_t>(job.columns);
    const size_t rows = values.size() / std::max<size_t>(columns, 1);
    for (size_t i = 0; i < values.size(); ++i) {
      switch (job.change) {
        case VectorJob::Change::none:
          out[i] = values[i];
          break;
        case VectorJob::Change::plus_one:
          out[i] = 1.0f + values[i];
          break;
        case VectorJob::Change::exponential:
          out[i] = std::exp(values[i]);
          break;
        case VectorJob::Change::transpose:
          out[i % columns * rows + i / columns] = values[i];
          break;
      }
    }
    check_finite(reinterpret_cast<const uint8_t*>(out), values.size() * sizeof(float), Dtype::f32, name);
  }

  const ResidentPlan& plan_;
  const std::vector<std::shared_ptr<io::File>>& files_;
  uint8_t* memory_;
  std::vector<Task> tasks_;
};

bool is_finite(const uint8_t* data, Dtype dtype) {
  uint16_t half = 0;
  uint32_t word = 0;
  switch (dtype) {
    case Dtype::bf16:
      std::memcpy(&half, data, sizeof half);
      return (half & 0x7f80u) != 0x7f80u;
    case Dtype::f16:
      std::memcpy(&half, data, sizeof half);
      return (half & 0x7c00u) != 0x7c00u;
    case Dtype::f8_e4m3:
      return (*data & 0x7fu) != 0x7fu;
    case Dtype::u8:
      return *data != 0xffu;
    default:
      FM_CHECK(dtype == Dtype::f32);
      std::memcpy(&word, data, sizeof word);
      return (word & 0x7f800000u) != 0x7f800000u;
  }
}

}  // namespace

void check_finite(const uint8_t* data, uint64_t bytes, Dtype dtype, const std::string& tensor) {
  const size_t step = dtype_bytes(dtype);
  for (uint64_t i = 0; i < bytes; i += step) {
    if (!is_finite(data + i, dtype)) {
      throw FormatError(tensor + ": NaN or infinity at element " + std::to_string(i / step) +
                        " (the file is damaged)");
    }
  }
}

std::vector<float> widen_floats(const std::vector<uint8_t>& raw, Dtype dtype) {
  std::vector<float> out(raw.size() / dtype_bytes(dtype));
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t half = 0;
    if (dtype == Dtype::f32) {
      std::memcpy(&out[i], raw.data() + 4 * i, 4);
      continue;
    }
    FM_CHECK(dtype == Dtype::bf16 || dtype == Dtype::f16);
    std::memcpy(&half, raw.data() + 2 * i, 2);
    out[i] = dtype == Dtype::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
  }
  return out;
}

backend::ModelWeights read_resident(const ResidentPlan& plan, const std::vector<std::shared_ptr<io::File>>& files,
                                    uint8_t* memory, int thread_count, const ByteProgress& progress) {
  Reader reader(plan, files, memory);
  TaskRunner(reader.tasks(), progress).run(thread_count);
  backend::ModelWeights weights;
  weights.shape = plan.shape;
  weights.layers.resize(plan.shape.layers.size());
  for (const MatrixJob& job : plan.matrices) {
    Matrix& matrix = job.field(weights);
    matrix = job.form;
    matrix.data = memory + job.offsets[0];
    if (job.form.scales_bytes() > 0) matrix.scales = memory + job.offsets[1];
    if (job.form.format == MatrixFormat::affine) matrix.biases = memory + job.offsets[2];
  }
  for (const VectorJob& job : plan.vectors) {
    job.field(weights) = reinterpret_cast<const float*>(memory + job.offset);
  }
  if (plan.head_is_embedding) weights.head = weights.embedding;
  return weights;
}

}  // namespace flash_moe::model
