#pragma once
// dense.safetensors of a pack: every tensor of the text model but the routed experts', copied or quantised, under its
// own name.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/pack_files.h"
#include "model/pack_settings.h"
#include "model/weights.h"

namespace flash_moe::model {

class DenseFile {
 public:
  // Chooses every format; `files` outlives the object.
  DenseFile(const ModelFiles& files, PackFormats& formats);

  uint64_t bytes() const { return header_.size() + data_bytes_; }
  // Writes the file whole. Throws as pack_folder does.
  format::PackFile write(const std::string& folder, int thread_count, PackProgress& progress) const;

 private:
  struct Module {
    std::string name;          // of the data tensor
    std::string scales_name;   // empty: none
    std::string biases_name;
    format::MatrixTensors tensors;  // of a plain tensor only `data`
    Matrix target;                  // equal to tensors.form when copied
    bool copied = true;
    bool is_vector = false;
  };

  void add_matrix(const MatrixJob& job, PackFormats& formats);
  void build_header(bool says_mlx);
  void write_copied(const Module& module, ChecksummedFile& out) const;
  void write_quantised(const Module& module, int thread_count, ChecksummedFile& out) const;
  void copy_tensor(const format::TensorInfo& tensor, ChecksummedFile& out) const;

  const ModelFiles& files_;
  std::unordered_map<const format::TensorInfo*, std::string> names_;
  std::vector<Module> modules_;
  std::string header_;  // with its length before it
  uint64_t data_bytes_ = 0;
};

}  // namespace flash_moe::model
