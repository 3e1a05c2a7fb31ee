#include "model/pack_settings.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "flash_moe/error.h"
#include "format/matrix_tensors.h"

namespace flash_moe::model {
namespace {

constexpr int router_bits_min = 8;
constexpr int groups[] = {128, 64, 32};

bool one_of(int value, std::initializer_list<int> values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_router(std::string_view module) {
  return ends_with(module, ".mlp.gate") || ends_with(module, ".shared_expert_gate");
}

// Whole-text match of a pattern in which '*' stands for any text.
bool matches_whole(std::string_view text, std::string_view pattern) {
  size_t t = 0;
  size_t p = 0;
  size_t star = std::string_view::npos;
  size_t resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

void check_bits(const std::string& what, int bits) {
  if (!one_of(bits, {0, 2, 3, 4, 5, 6, 8})) {
    throw ConfigError(what + " must be 2, 3, 4, 5, 6 or 8 (0: as in the source), got " + std::to_string(bits));
  }
}

void check_group(const std::string& what, int group) {
  if (!one_of(group, {32, 64, 128})) {
    throw ConfigError(what + " must be 32, 64 or 128, got " + std::to_string(group));
  }
}

double bits_a_weight(const Matrix& form) {
  return 8.0 * static_cast<double>(form.total_bytes()) / static_cast<double>(form.rows * form.cols);
}

}  // namespace

bool is_quantised(const Matrix& form) {
  return form.format != MatrixFormat::f32 && form.format != MatrixFormat::f16 && form.format != MatrixFormat::bf16;
}

PackFormats::PackFormats(const PackSettings& settings) : settings_(settings), used_(settings.overrides.size()) {
  check_bits("bits", settings.bits);
  check_bits("dense bits", settings.dense_bits);
  check_group("group", settings.group);
  for (const PackOverride& override : settings.overrides) {
    if (settings.bits == 0) {
      throw ConfigError("override " + override.pattern + " needs bits: without them a pack is a copy");
    }
    check_bits("bits of override " + override.pattern, override.bits);
    if (override.group != 0) check_group("group of override " + override.pattern, override.group);
  }
}

Matrix PackFormats::expert(const std::string& module, const Matrix& source) {
  if (settings_.bits != 0 && is_quantised(source) && !settings_.allow_requantise) {
    throw ConfigError("the experts of the source are quantised already (" + format::format_text(source) +
                      "); rounding them again loses more than rounding the 16-bit original once. Pack that, or pass "
                      "allow_requantise");
  }
  return choose(module, source, settings_.bits);
}

Matrix PackFormats::dense(const std::string& module, const Matrix& source) {
  return choose(module, source, settings_.bits == 0 ? 0 : settings_.dense_bits);
}

Matrix PackFormats::choose(const std::string& module, const Matrix& source, int bits) {
  int group = settings_.group;
  bool stated = false;
  for (size_t i = 0; i < settings_.overrides.size(); ++i) {
    const PackOverride& override = settings_.overrides[i];
    if (!matches_whole(module, "*" + override.pattern)) continue;
    used_[i] = true;
    stated = true;
    bits = override.bits;
    group = override.group != 0 ? override.group : settings_.group;
  }
  if (is_router(module) && bits != 0 && bits < router_bits_min) {
    if (stated) {
      throw ConfigError("override for " + module + " asks for " + std::to_string(bits) +
                        " bits; routers and shared-expert gates need 8 at least");
    }
    bits = router_bits_min;
  }
  if (bits == 0 || (is_quantised(source) && !settings_.allow_requantise)) return source;
  const auto* fits = std::find_if(std::begin(groups), std::end(groups), [&](int candidate) {
    return candidate <= group && source.cols % candidate == 0;
  });
  if (fits == std::end(groups)) return source;
  Matrix out;
  out.format = MatrixFormat::affine;
  out.bits = static_cast<uint8_t>(bits);
  out.group = static_cast<uint16_t>(*fits);
  // As in MLX, the scales have the type of the weights; what has none (FP8 and quantised sources) gets bfloat16.
  out.scale_dtype = source.format == MatrixFormat::f32   ? Dtype::f32
                    : source.format == MatrixFormat::f16 ? Dtype::f16
                                                         : Dtype::bf16;
  out.rows = source.rows;
  out.cols = source.cols;
  const bool pointless = is_quantised(source) && bits_a_weight(out) >= bits_a_weight(source);
  return pointless ? source : out;
}

void PackFormats::check_overrides_used() const {
  for (size_t i = 0; i < used_.size(); ++i) {
    if (!used_[i]) throw ConfigError("override " + settings_.overrides[i].pattern + " matches no module of the model");
  }
}

format::Json PackFormats::json() const {
  format::Json::Array overrides;
  for (const PackOverride& override : settings_.overrides) {
    overrides.push_back(
        format::Json::Object{{"pattern", override.pattern}, {"bits", override.bits}, {"group", override.group}});
  }
  return format::Json::Object{{"bits", settings_.bits},
                              {"group", settings_.group},
                              {"dense_bits", settings_.dense_bits},
                              {"overrides", std::move(overrides)}};
}

}  // namespace flash_moe::model
