#pragma once
// A strict JSON reader and writer for headers, configs and manifests. Text comes from untrusted files: every
// defect is a FormatError with file, line and column, and no input costs more than its own length.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace flash_moe::format {

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;  // in the order of the text; names are distinct

  Json() = default;  // null
  Json(bool value) : value_(value) {}
  Json(int64_t value) : value_(value) {}
  Json(int value) : value_(static_cast<int64_t>(value)) {}
  Json(double value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // Null unless the value has that type. A number without fraction and exponent that fits is an integer; any other
  // is a double.
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  const double* real() const { return std::get_if<double>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }

  // The member of that name; null when there is none or this is no object. Linear in the number of members.
  const Json* find(std::string_view name) const;
  // "an object", "a string", ... for messages.
  const char* type_name() const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

struct JsonLimits {
  int depth = 64;
  // Python writes NaN, Infinity and -Infinity; configs may hold them in fields that nobody reads.
  bool non_finite = false;
};

// `where` names the file in messages. Throws FormatError.
Json parse_json(std::string_view text, const std::string& where, JsonLimits limits = {});

// Indented by two spaces; arrays of plain values on one line. Throws InternalError for non-finite numbers.
std::string write_json(const Json& value);

// Typed access to one object, each failure a FormatError that names the file and the path of the field.
class JsonFields {
 public:
  // `path` is "" for the top level, else e.g. "text_config". Throws unless `value` is an object.
  JsonFields(const Json& value, std::string where, std::string path = "");

  // Absent and null count as missing.
  bool has(std::string_view name) const;
  int64_t integer(std::string_view name, int64_t least, int64_t most) const;
  int64_t integer_or(std::string_view name, int64_t fallback, int64_t least, int64_t most) const;
  double real(std::string_view name) const;  // finite
  double real_or(std::string_view name, double fallback) const;
  bool boolean(std::string_view name) const;
  bool boolean_or(std::string_view name, bool fallback) const;
  const std::string& string(std::string_view name) const;
  const Json::Array& array(std::string_view name) const;
  JsonFields fields(std::string_view name) const;

  const Json& value() const { return *value_; }
  // "config.json: text_config.hidden_size", to start a message with.
  std::string name_of(std::string_view field) const;
  [[noreturn]] void fail(std::string_view field, const std::string& what) const;

 private:
  const Json& need(std::string_view name, const char* wanted) const;

  const Json* value_;
  std::string where_;
  std::string path_;
};

}  // namespace flash_moe::format
