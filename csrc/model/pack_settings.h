#pragma once
// Which format each module of a pack gets.

#include <string>
#include <vector>

#include "base/matrix.h"
#include "format/json.h"
#include "model/pack_model.h"

namespace flash_moe::model {

class PackFormats {
 public:
  // ConfigError for bits or groups that do not exist, and for a router override below 8 bits.
  explicit PackFormats(const PackSettings& settings);

  // The format of `module` in the pack, given the one that it has in the source; pointers null. A module that is not to
  // change comes back as it is.
  Matrix expert(const std::string& module, const Matrix& source);
  Matrix dense(const std::string& module, const Matrix& source);

  // ConfigError naming an override that matched nothing: a misspelt name must not go unnoticed.
  void check_overrides_used() const;
  // What a resumed pack compares.
  format::Json json() const;

 private:
  Matrix choose(const std::string& module, const Matrix& source, int bits);

  PackSettings settings_;
  std::vector<bool> used_;
};

bool is_quantised(const Matrix& form);

}  // namespace flash_moe::model
