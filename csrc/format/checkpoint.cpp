#include "format/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "flash_moe/error.h"

namespace flash_moe::format {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> names_in(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> names;
  fs::directory_iterator it(folder, error);
  if (error) {
    throw ConfigError("model folder " + folder + ": " + error.message() +
                      " (the path must be a folder with config.json and *.safetensors)");
  }
  for (; it != fs::directory_iterator(); it.increment(error)) {
    if (error) throw IoError("list " + folder + ": " + error.message());
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Shard -> the tensors that the index promises in it.
std::map<std::string, std::vector<std::string>> read_index(const std::string& path) {
  const Json json = parse_json(read_text_file(path), path);
  const JsonFields weight_map = JsonFields(json, path).fields("weight_map");
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, shard] : *weight_map.value().object()) {
    const std::string* name = shard.string();
    if (!name || name->empty() || name->find('/') != std::string::npos || *name == "..") {
      weight_map.fail(tensor, "must be the name of a file in the folder");
    }
    shards[*name].push_back(tensor);
  }
  if (shards.empty()) weight_map.fail("", "is empty: it names no shard");
  return shards;
}

// Without an index, "x-00002-of-00005.safetensors" still says how many shards there must be.
void check_shard_count(const std::vector<std::string>& names, const std::string& folder) {
  for (const std::string& name : names) {
    const size_t of = name.rfind("-of-");
    int count = 0;
    if (of == std::string::npos ||
        std::from_chars(name.data() + of + 4, name.data() + name.size(), count).ec != std::errc{}) {
      continue;
    }
    const std::string tail = name.substr(of);
    const auto present = std::count_if(names.begin(), names.end(),
                                       [&](const std::string& other) { return ends_with(other, tail); });
    if (present != count) {
      throw FormatError(folder + ": " + name + " promises " + std::to_string(count) + " shards, found " +
                        std::to_string(present) + " (is the download complete?)");
    }
  }
}

std::vector<std::string> safetensors_in(const std::string& folder) {
  std::vector<std::string> found;
  bool has_gguf = false;
  for (const std::string& name : names_in(folder)) {
    if (ends_with(name, ".safetensors") && name[0] != '.') found.push_back(name);
    has_gguf = has_gguf || ends_with(name, ".gguf");
  }
  if (found.empty()) {
    throw ConfigError("model folder " + folder + " has no *.safetensors file" +
                      (has_gguf ? " (GGUF files are not supported; get the safetensors or MLX version)"
                                : " (is the download complete?)"));
  }
  check_shard_count(found, folder);
  return found;
}

}  // namespace

std::string read_text_file(const std::string& path, uint64_t bytes_max) {
  const io::File file(path);
  if (file.size_bytes() > bytes_max) {
    throw FormatError(path + ": has " + std::to_string(file.size_bytes()) + " bytes, wanted at most " +
                      std::to_string(bytes_max));
  }
  std::string text(file.size_bytes(), '\0');
  file.read_exact(text.data(), text.size(), 0);
  reject_lfs_pointer(text, path);
  return text;
}

Checkpoint::Checkpoint(const std::string& folder) {
  const std::string index = folder + "/model.safetensors.index.json";
  std::error_code error;
  if (!fs::exists(index, error)) {
    for (const std::string& name : safetensors_in(folder)) add_file(folder + "/" + name);
    return;
  }
  const auto shards = read_index(index);
  for (const auto& [shard, tensors] : shards) {
    const std::string path = folder + "/" + shard;
    if (!fs::exists(path, error)) {
      throw FormatError(folder + ": shard " + shard + " is missing, which " + index + " names for " +
                        tensors.front() + " (is the download complete?)");
    }
    add_file(path);
    for (const std::string& tensor : tensors) {
      const TensorInfo* info = find(tensor);
      if (!info || info->file + 1 != files_.size()) {
        throw FormatError(path + ": tensor " + tensor + " is missing, which " + index + " places here");
      }
    }
  }
}

Checkpoint Checkpoint::single_file(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.add_file(path);
  return checkpoint;
}

void Checkpoint::add_file(const std::string& path) {
  auto file = std::make_shared<io::File>(path);
  SafetensorsHeader header = read_safetensors_header(*file);
  files_.push_back(std::move(file));
  for (const auto& [key, value] : header.metadata) {
    if (key == "format" && value == "mlx") says_mlx_ = true;
  }
  for (auto& [name, info] : header.tensors) {
    info.file = static_cast<uint32_t>(files_.size() - 1);
    const auto [twin, fresh] = tensors_.emplace(name, std::move(info));
    if (!fresh) {
      throw FormatError(path + ": tensor " + name + " is also in " + files_[twin->second.file]->path());
    }
  }
}

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const TensorInfo& Checkpoint::need(const std::string& name, const std::vector<Dtype>& dtypes,
                                   const std::vector<int64_t>& shape) const {
  const TensorInfo* info = find(name);
  if (!info) throw FormatError("tensor " + name + " is missing, wanted shape " + shape_text(shape));
  if (info->shape != shape) {
    throw FormatError(place_of(*info) + ": tensor " + name + " has shape " + shape_text(info->shape) +
                      ", wanted " + shape_text(shape));
  }
  if (std::find(dtypes.begin(), dtypes.end(), info->dtype) == dtypes.end()) {
    std::string wanted;
    for (const Dtype dtype : dtypes) wanted += (wanted.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    throw FormatError(place_of(*info) + ": tensor " + name + " is " + dtype_name(info->dtype) + ", wanted " +
                      wanted);
  }
  return *info;
}

std::string Checkpoint::place_of(const TensorInfo& info) const { return files_[info.file]->path(); }

}  // namespace flash_moe::format
