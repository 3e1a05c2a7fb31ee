#pragma once
// Which tensors make up one weight matrix, and in which format: plain, block-FP8 or MLX-quantised. The tensors'
// shapes prove bits and group; what config.json states must agree.

#include <optional>
#include <string>
#include <unordered_map>

#include "base/matrix.h"
#include "format/checkpoint.h"

namespace flash_moe::format {

// What a config says about one module.
struct StatedFormat {
  bool quantised = true;  // false: "module": false
  MatrixFormat format = MatrixFormat::affine;
  int64_t bits = 0;
  int64_t group = 0;
};

// MLX's `quantization` (defaults, and overrides by module), and the check that Hugging Face's
// `quantization_config` asks for nothing but block-FP8 of 128 x 128. Throws FormatError.
class QuantisationConfig {
 public:
  QuantisationConfig() = default;  // states nothing
  QuantisationConfig(const Json& config, const std::string& where);

  bool states_mlx() const { return default_.has_value(); }
  // The module's own entry, null when it has none.
  const StatedFormat* own(const std::string& module) const;
  const StatedFormat* fallback() const { return default_ ? &*default_ : nullptr; }

 private:
  std::optional<StatedFormat> default_;
  std::unordered_map<std::string, StatedFormat> modules_;
};

// The tensors of one matrix, or of `count` equal ones stacked along the first dimension.
struct MatrixTensors {
  Matrix form;  // of one matrix; pointers null
  const TensorInfo* data = nullptr;
  const TensorInfo* scales = nullptr;
  const TensorInfo* biases = nullptr;
};

struct MatrixName {
  std::string module;          // "model.layers.0.mlp.gate"
  bool bare = false;           // the data tensor is `module` itself, without ".weight" (fused experts)
  int64_t count = 0;           // leading dimension of stacked matrices; 0: the tensors are 2-D
  std::string data_tensor() const { return bare ? module : module + ".weight"; }
};

// Nothing when the data tensor is absent. FormatError when a shape, dtype or statement does not fit.
std::optional<MatrixTensors> find_matrix(const Checkpoint& checkpoint, const QuantisationConfig& config,
                                         const MatrixName& name, int64_t rows, int64_t cols);

// "bf16", "fp8 128x128", "affine 4-bit g64", "mxfp4", ...
std::string format_text(const Matrix& form);

}  // namespace flash_moe::format
