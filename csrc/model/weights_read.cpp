#include "model/weights_read.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "flash_moe/error.h"

namespace flash_moe::model {
namespace {

using format::TensorInfo;

constexpr uint64_t task_bytes_max = 8 << 20;

// What every task needs; tasks keep a copy.
struct Source {
  const ResidentPlan* plan;
  const std::vector<std::shared_ptr<io::File>>* files;
  uint8_t* memory;

  const io::File& file(const TensorInfo& tensor) const { return *(*files)[tensor.file]; }
  std::vector<uint8_t> whole(const TensorInfo& tensor) const {
    std::vector<uint8_t> raw(tensor.bytes);
    file(tensor).read_exact(raw.data(), raw.size(), tensor.offset);
    return raw;
  }
};

// One of a matrix's tensors, run of rows by run of rows, in tasks of bounded size.
void add_part(const Source& source, const MatrixJob& job, size_t part, const TensorInfo* tensor, int64_t row_bytes,
              int64_t rows_per_row, std::vector<ReadTask>& tasks) {
  if (!tensor) return;
  uint8_t* out = source.memory + job.offsets[part];
  const io::File* file = &source.file(*tensor);
  for (const RowRun& run : job.runs) {
    const int64_t begin = run.begin / rows_per_row;
    const int64_t count = (run.count + rows_per_row - 1) / rows_per_row;
    uint64_t offset = tensor->offset + static_cast<uint64_t>(begin * row_bytes);
    uint64_t left = static_cast<uint64_t>(count * row_bytes);
    while (left > 0) {
      const uint64_t bytes = std::min(left, task_bytes_max);
      tasks.push_back({job.stage, bytes, [file, out, bytes, offset, part, &job] {
                         file->read_exact(out, bytes, offset);
                         if (part > 0) check_finite(out, bytes, job.form.scale_dtype, file->path() + ": scales of " + job.name);
                       }});
      offset += bytes;
      out += bytes;
      left -= bytes;
    }
  }
}

void widen_fp8(const Source& source, const MatrixJob& job) {
  const std::vector<uint8_t> codes = source.whole(*job.tensors.data);
  const std::vector<uint8_t> raw_scales = source.whole(*job.tensors.scales);
  const std::string name = source.file(*job.tensors.scales).path() + ": scales of " + job.name;
  check_finite(raw_scales.data(), raw_scales.size(), job.tensors.scales->dtype, name);
  const std::vector<float> scales = widen_floats(raw_scales, job.tensors.scales->dtype);
  const int64_t cols = job.form.cols;
  const int64_t blocks = (cols + 127) / 128;
  float* out = reinterpret_cast<float*>(source.memory + job.offsets[0]);
  for (const RowRun& run : job.runs) {
    for (int64_t row = run.begin; row < run.begin + run.count; ++row) {
      for (int64_t col = 0; col < cols; ++col) {
        const float scale = scales[static_cast<size_t>(row / 128 * blocks + col / 128)];
        *out++ = f8_e4m3_to_f32(codes[static_cast<size_t>(row * cols + col)]) * scale;
      }
    }
  }
}

void convert(const Source& source, const VectorJob& job) {
  const std::vector<uint8_t> raw = source.whole(*job.tensor);
  const std::string name = source.file(*job.tensor).path() + ": " + job.name;
  check_finite(raw.data(), raw.size(), job.tensor->dtype, name);
  const std::vector<float> values = widen_floats(raw, job.tensor->dtype);
  float* out = reinterpret_cast<float*>(source.memory + job.offset);
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

std::vector<ReadTask> read_tasks(const ResidentPlan& plan, const std::vector<std::shared_ptr<io::File>>& files,
                                 uint8_t* memory) {
  const Source source{&plan, &files, memory};
  std::vector<ReadTask> tasks;
  for (const MatrixJob& job : plan.matrices) {
    if (job.widen) {
      tasks.push_back({job.stage, static_cast<uint64_t>(job.form.data_bytes()), [source, &job] { widen_fp8(source, job); }});
      continue;
    }
    add_part(source, job, 0, job.tensors.data, job.form.row_bytes(), 1, tasks);
    const int64_t rows_per_scale = job.form.format == MatrixFormat::fp8_block ? 128 : 1;
    add_part(source, job, 1, job.tensors.scales, job.form.scale_row_bytes(), rows_per_scale, tasks);
    add_part(source, job, 2, job.tensors.biases, job.form.scale_row_bytes(), 1, tasks);
  }
  for (const VectorJob& job : plan.vectors) {
    tasks.push_back({job.stage, job.tensor->bytes, [source, &job] { convert(source, job); }});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const ReadTask& a, const ReadTask& b) { return a.stage < b.stage; });
  return tasks;
}

backend::ModelWeights resident_views(const ResidentPlan& plan, uint8_t* memory) {
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
