#include "model/pack_dense.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "flash_moe/error.h"
#include "format/affine.h"
#include "format/matrix_tensors.h"

namespace flash_moe::model {
namespace {

using format::Json;
using format::TensorInfo;

constexpr const char* dense_name = "dense.safetensors";
constexpr uint64_t copy_block_bytes = 4 << 20;
constexpr int64_t block_values = 8 << 20;  // rounded at a time: 32 MiB of f32
constexpr size_t data_alignment = 64;

std::string module_of(const std::string& tensor) {
  constexpr std::string_view end = ".weight";
  return tensor.substr(0, tensor.size() - std::min(tensor.size(), end.size()));
}

}  // namespace

DenseFile::DenseFile(const ModelFiles& files, PackFormats& formats) : files_(files) {
  for (const auto& [name, info] : files.checkpoint().tensors()) names_[&info] = name;
  std::unordered_set<const TensorInfo*> seen;
  for (const MatrixJob& job : files.resident_plan().matrices) {
    // Matrices that are cut out of one fused tensor are stored once, as the source has them.
    if (seen.insert(job.tensors.data).second) add_matrix(job, formats);
  }
  for (const VectorJob& job : files.resident_plan().vectors) {
    Module module;
    module.name = job.name;
    module.tensors.data = job.tensor;
    module.is_vector = true;
    modules_.push_back(std::move(module));
  }
  build_header(files.checkpoint().says_mlx());
}

void DenseFile::add_matrix(const MatrixJob& job, PackFormats& formats) {
  Module module;
  module.name = job.name;
  module.tensors = job.tensors;
  module.target = formats.dense(module_of(job.name), job.tensors.form);
  module.copied = module.target.format == job.tensors.form.format && module.target.bits == job.tensors.form.bits &&
                  module.target.group == job.tensors.form.group;
  if (!module.copied) {
    module.scales_name = module_of(job.name) + ".scales";
    module.biases_name = module_of(job.name) + ".biases";
  } else {
    if (job.tensors.scales) module.scales_name = names_.at(job.tensors.scales);
    if (job.tensors.biases) module.biases_name = names_.at(job.tensors.biases);
  }
  modules_.push_back(std::move(module));
}

void DenseFile::build_header(bool says_mlx) {
  Json::Object header = {{"__metadata__", Json::Object{{"format", says_mlx ? "mlx" : "pt"}}}};
  const auto add = [&](const std::string& name, Dtype dtype, const std::vector<int64_t>& shape) {
    int64_t bytes = static_cast<int64_t>(dtype_bytes(dtype));
    Json::Array dimensions;
    for (const int64_t dimension : shape) {
      bytes *= dimension;
      dimensions.emplace_back(dimension);
    }
    const auto begin = static_cast<int64_t>(data_bytes_);
    data_bytes_ += static_cast<uint64_t>(bytes);
    header.emplace_back(name, Json::Object{{"dtype", dtype_name(dtype)},
                                           {"shape", std::move(dimensions)},
                                           {"data_offsets", Json::Array{begin, begin + bytes}}});
  };
  for (const Module& module : modules_) {
    if (!module.copied) {
      const Matrix& form = module.target;
      add(module.name, Dtype::u32, {form.rows, form.cols * form.bits / 32});
      add(module.scales_name, form.scale_dtype, {form.rows, form.cols / form.group});
      add(module.biases_name, form.scale_dtype, {form.rows, form.cols / form.group});
      continue;
    }
    const format::MatrixTensors& tensors = module.tensors;
    add(module.name, tensors.data->dtype, tensors.data->shape);
    if (tensors.scales) add(module.scales_name, tensors.scales->dtype, tensors.scales->shape);
    if (tensors.biases) add(module.biases_name, tensors.biases->dtype, tensors.biases->shape);
  }
  std::string text = format::write_json(std::move(header));
  constexpr size_t length_bytes = 8;
  text.resize((text.size() + length_bytes + data_alignment - 1) / data_alignment * data_alignment - length_bytes, ' ');
  header_.assign(length_bytes, '\0');
  for (size_t i = 0; i < length_bytes; ++i) header_[i] = static_cast<char>((text.size() >> (8 * i)) & 0xff);
  header_ += text;
}

format::PackFile DenseFile::write(const std::string& folder, int thread_count, PackProgress& progress) const {
  ChecksummedFile out(folder + "/" + dense_name, progress);
  out.write(header_.data(), header_.size());
  for (const Module& module : modules_) {
    if (module.copied) {
      write_copied(module, out);
    } else {
      write_quantised(module, thread_count, out);
    }
  }
  const format::PackFile written{dense_name, out.bytes(), out.checksum()};
  out.commit();
  return written;
}

void DenseFile::copy_tensor(const TensorInfo& tensor, ChecksummedFile& out) const {
  std::vector<uint8_t> block(std::min(copy_block_bytes, tensor.bytes));
  for (uint64_t done = 0; done < tensor.bytes; done += block.size()) {
    block.resize(std::min<uint64_t>(block.size(), tensor.bytes - done));
    files_.dense_files()[tensor.file]->read_exact(block.data(), block.size(), tensor.offset + done);
    out.write(block.data(), block.size());
  }
}

void DenseFile::write_copied(const Module& module, ChecksummedFile& out) const {
  const auto checked = [&](const TensorInfo& tensor, const std::string& name, Dtype dtype) {
    std::vector<uint8_t> raw(tensor.bytes);
    const io::File& file = *files_.dense_files()[tensor.file];
    file.read_exact(raw.data(), raw.size(), tensor.offset);
    check_finite(raw.data(), raw.size(), dtype, file.path() + ": " + name);
    out.write(raw.data(), raw.size());
  };
  const format::MatrixTensors& tensors = module.tensors;
  if (module.is_vector) {
    checked(*tensors.data, module.name, tensors.data->dtype);
    return;
  }
  copy_tensor(*tensors.data, out);
  if (tensors.scales) checked(*tensors.scales, module.scales_name, tensors.form.scale_dtype);
  if (tensors.biases) checked(*tensors.biases, module.biases_name, tensors.form.scale_dtype);
}

void DenseFile::write_quantised(const Module& module, int thread_count, ChecksummedFile& out) const {
  const Matrix& form = module.target;
  const TensorInfo& data = *module.tensors.data;
  const io::File& file = *files_.dense_files()[data.file];
  Matrix source = module.tensors.form;
  std::vector<uint8_t> source_scales(module.tensors.scales ? module.tensors.scales->bytes : 0);
  std::vector<uint8_t> source_biases(module.tensors.biases ? module.tensors.biases->bytes : 0);
  const auto read_whole = [&](const TensorInfo* tensor, std::vector<uint8_t>& raw) {
    if (tensor) files_.dense_files()[tensor->file]->read_exact(raw.data(), raw.size(), tensor->offset);
  };
  read_whole(module.tensors.scales, source_scales);
  read_whole(module.tensors.biases, source_biases);
  std::vector<uint8_t> scales(static_cast<size_t>(form.scales_bytes()));
  std::vector<uint8_t> biases(scales.size());
  // Blocks of 128 rows keep an FP8 source's scale rows whole.
  const int64_t rows_at_once = std::max<int64_t>(128, block_values / form.cols / 128 * 128);
  for (int64_t begin = 0; begin < form.rows; begin += rows_at_once) {
    const int64_t count = std::min(rows_at_once, form.rows - begin);
    std::vector<uint8_t> raw(static_cast<size_t>(count * source.row_bytes()));
    file.read_exact(raw.data(), raw.size(), data.offset + static_cast<uint64_t>(begin * source.row_bytes()));
    Matrix block = source;
    block.scales = source_scales.data();
    block.biases = source_biases.data();
    block = block.row_range(begin, count);
    block.data = raw.data();
    std::vector<uint8_t> codes(static_cast<size_t>(count * form.row_bytes()));
    run_parallel(count, thread_count, [&](int64_t row) {
      std::vector<float> values(static_cast<size_t>(form.cols));
      format::dequantise_row(block, row, values.data());
      const int64_t scale_at = (begin + row) * form.scale_row_bytes();
      if (!format::quantise_affine_row(values.data(), form,
                                       {codes.data() + row * form.row_bytes(), scales.data() + scale_at,
                                        biases.data() + scale_at})) {
        throw FormatError(file.path() + ": row " + std::to_string(begin + row) + " of " + module.name +
                          " holds NaN, infinity or a value too large to quantise (the file is damaged)");
      }
    });
    out.write(codes.data(), codes.size());
  }
  out.write(scales.data(), scales.size());
  out.write(biases.data(), biases.size());
}

}  // namespace flash_moe::model
