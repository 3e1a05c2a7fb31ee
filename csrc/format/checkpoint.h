#pragma once
// A folder of safetensors files: one file, or shards named by model.safetensors.index.json.

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "format/json.h"
#include "format/safetensors.h"
#include "io/file.h"

namespace flash_moe::format {

// Reads a whole text file of a model folder. FormatError for a Git-LFS pointer or more than `bytes_max`.
std::string read_text_file(const std::string& path, uint64_t bytes_max = 256'000'000);

// Every tensor of a checkpoint by its name in the files. Thread-safe once made.
class Checkpoint {
 public:
  // Reads the headers. Throws ConfigError for a folder that is not there or holds no safetensors, FormatError that
  // names a missing shard, a tensor that the index promises and no shard has, or a tensor that two shards have.
  explicit Checkpoint(const std::string& folder);
  // One safetensors file, e.g. the dense tensors of a pack.
  static Checkpoint single_file(const std::string& path);

  const std::vector<std::shared_ptr<io::File>>& files() const { return files_; }
  const std::unordered_map<std::string, TensorInfo>& tensors() const { return tensors_; }
  // True when a file's metadata says {"format": "mlx"}.
  bool says_mlx() const { return says_mlx_; }

  const TensorInfo* find(const std::string& name) const;  // null when absent
  // The tensor with exactly that shape and one of those dtypes; FormatError says what was wanted and what came.
  const TensorInfo& need(const std::string& name, const std::vector<Dtype>& dtypes,
                         const std::vector<int64_t>& shape) const;
  std::string place_of(const TensorInfo& info) const;  // the file's path, for messages

 private:
  Checkpoint() = default;
  void add_file(const std::string& path);

  std::vector<std::shared_ptr<io::File>> files_;
  std::unordered_map<std::string, TensorInfo> tensors_;
  bool says_mlx_ = false;
};

}  // namespace flash_moe::format
