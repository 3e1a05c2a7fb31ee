#include "format/json.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <locale>
#include <sstream>

#include "base/check.h"
#include "flash_moe/error.h"

namespace flash_moe::format {
namespace {

// Bytes of the UTF-8 sequence at text[i], 0 when it is none (overlong, surrogate and out-of-range forms included).
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t at) -> unsigned {
    return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u;
  };
  const auto continues = [&](size_t at) { return (byte(at) & 0xc0u) == 0x80u; };
  const unsigned lead = byte(i);
  const unsigned second = byte(i + 1);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return continues(i + 1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    if (lead == 0xe0 && second < 0xa0) return 0;
    if (lead == 0xed && second > 0x9f) return 0;
    return continues(i + 1) && continues(i + 2) ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    if (lead == 0xf0 && second < 0x90) return 0;
    if (lead == 0xf4 && second > 0x8f) return 0;
    return continues(i + 1) && continues(i + 2) && continues(i + 3) ? 4 : 0;
  }
  return 0;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3f));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& where, JsonLimits limits)
      : text_(text), where_(where), limits_(limits) {}

  Json document() {
    Json value = parse_value(0);
    skip_space();
    if (at_ != text_.size()) fail(at_, "text after the end of the JSON value");
    return value;
  }

 private:
  [[noreturn]] void fail(size_t at, const std::string& what) const {
    const std::string_view before = text_.substr(0, std::min(at, text_.size()));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t line_begin = before.rfind('\n') + 1;  // npos + 1 is 0
    throw FormatError(where_ + ":" + std::to_string(line) + ":" +
                      std::to_string(before.size() - line_begin + 1) + ": " + what);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json parse_value(int depth) {
    skip_space();
    if (at_ == text_.size()) fail(at_, "wanted a JSON value, got the end of the text");
    if (depth > limits_.depth) fail(at_, "nested deeper than " + std::to_string(limits_.depth) + " levels");
    switch (peek()) {
      case '{':
        return parse_object(depth);
      case '[':
        return parse_array(depth);
      case '"':
        return parse_string();
      default:
        break;
    }
    const size_t begin = at_;
    if (take("true")) return true;
    if (take("false")) return false;
    if (take("null")) return {};
    double special = 0;
    if (take("NaN")) {
      special = std::nan("");
    } else if (take("Infinity")) {
      special = HUGE_VAL;
    } else if (take("-Infinity")) {
      special = -HUGE_VAL;
    } else {
      return parse_number();
    }
    if (!limits_.non_finite) fail(begin, "NaN and Infinity are not JSON");
    return special;
  }

  Json parse_object(int depth) {
    const size_t begin = at_++;
    Json::Object members;
    skip_space();
    if (take("}")) return members;
    members.reserve(4);
    while (true) {
      skip_space();
      if (peek() != '"') fail(at_, "wanted a member name in quotes");
      std::string name = parse_string();
      skip_space();
      if (!take(":")) fail(at_, "wanted ':' after \"" + name + "\"");
      Json value = parse_value(depth + 1);
      members.emplace_back(std::move(name), std::move(value));
      skip_space();
      if (take("}")) break;
      if (!take(",")) fail(at_, "wanted ',' or '}' in an object");
    }
    reject_duplicates(members, begin);
    return members;
  }

  // Sorted by hash: headers have hundreds of thousands of names with long common beginnings.
  void reject_duplicates(const Json::Object& members, size_t begin) const {
    if (members.size() < 2) return;
    std::vector<std::pair<size_t, std::string_view>> names;
    names.reserve(members.size());
    for (const auto& member : members) {
      names.emplace_back(std::hash<std::string_view>{}(member.first), member.first);
    }
    std::sort(names.begin(), names.end());
    const auto twin = std::adjacent_find(names.begin(), names.end());
    if (twin != names.end()) {
      fail(begin, "the object has two members named \"" + std::string(twin->second) + "\"");
    }
  }

  Json parse_array(int depth) {
    ++at_;
    Json::Array items;
    skip_space();
    if (take("]")) return items;
    while (true) {
      items.push_back(parse_value(depth + 1));
      skip_space();
      if (take("]")) return items;
      if (!take(",")) fail(at_, "wanted ',' or ']' in an array");
    }
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      uint32_t digit;
      if (c >= '0' && c <= '9') {
        digit = static_cast<uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<uint32_t>(c - 'a' + 10);
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<uint32_t>(c - 'A' + 10);
      } else {
        fail(at_, "wanted four hexadecimal digits after \\u");
      }
      code = code * 16 + digit;
      ++at_;
    }
    return code;
  }

  void parse_escape(std::string& out) {
    const size_t begin = at_++;
    const char c = peek();
    ++at_;
    constexpr std::string_view letters = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (const size_t i = letters.find(c); i != std::string_view::npos && c != '\0') {
      out.push_back(meanings[i]);
      return;
    }
    if (c != 'u') fail(begin, "unknown escape in a string");
    uint32_t code = parse_hex4();
    if (code >= 0xd800 && code < 0xdc00) {
      if (!take("\\u")) fail(begin, "half of a surrogate pair");
      const uint32_t low = parse_hex4();
      if (low < 0xdc00 || low > 0xdfff) fail(begin, "half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code <= 0xdfff) {
      fail(begin, "half of a surrogate pair");
    }
    append_utf8(out, code);
  }

  std::string parse_string() {
    const size_t begin = at_++;
    std::string out;
    while (true) {
      if (at_ >= text_.size()) fail(begin, "the string does not end");
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c == '\\') {
        parse_escape(out);
        continue;
      }
      if (const size_t plain = plain_length(); plain > 0) {
        out.append(text_.substr(at_, plain));
        at_ += plain;
        continue;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail(at_, "a control character inside a string");
      const size_t length = utf8_length(text_, at_);
      if (length == 0) fail(at_, "the text is not UTF-8");
      out.append(text_.substr(at_, length));
      at_ += length;
    }
  }

  // Bytes from here on that stand for themselves in a string.
  size_t plain_length() const {
    size_t end = at_;
    while (end < text_.size()) {
      const auto byte = static_cast<unsigned char>(text_[end]);
      if (byte < 0x20 || byte >= 0x80 || byte == '"' || byte == '\\') break;
      ++end;
    }
    return end - at_;
  }

  bool take_digits() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ != begin;
  }

  Json parse_number() {
    const size_t begin = at_;
    const bool negative = take("-");
    const size_t digits = at_;
    if (!take_digits()) fail(begin, "wanted a JSON value");
    if (text_[digits] == '0' && at_ - digits > 1) fail(begin, "a number starts with 0");
    bool whole = true;
    if (take(".")) {
      whole = false;
      if (!take_digits()) fail(begin, "wanted digits after the decimal point");
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (!take("+")) take("-");
      if (!take_digits()) fail(begin, "wanted digits in the exponent");
    }
    int64_t value = 0;
    for (size_t i = digits; whole && i < at_; ++i) {
      const int digit = text_[i] - '0';
      whole = !__builtin_mul_overflow(value, int64_t{10}, &value) &&
              !__builtin_sub_overflow(value, static_cast<int64_t>(digit), &value);
    }
    if (whole && negative) return value;
    if (whole && value != INT64_MIN) return -value;
    return parse_double(begin);
  }

  // The stream has its own locale: strtod would follow the host program's.
  Json parse_double(size_t begin) const {
    std::istringstream stream{std::string(text_.substr(begin, at_ - begin))};
    stream.imbue(std::locale::classic());
    double value = 0;
    stream >> value;
    if (stream.fail() || !std::isfinite(value)) {
      if (value != 0) fail(begin, "the number does not fit a double");
    }
    return value;
  }

  std::string_view text_;
  const std::string& where_;
  JsonLimits limits_;
  size_t at_ = 0;
};

void write_string(std::string& out, std::string_view text) {
  constexpr char hex[] = "0123456789abcdef";
  out.push_back('"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20) {
      out += "\\u00";
      out.push_back(hex[byte >> 4]);
      out.push_back(hex[byte & 15]);
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

void write_double(std::string& out, double value) {
  FM_CHECK(std::isfinite(value));
  std::ostringstream stream;
  stream.imbue(std::locale::classic());
  stream.precision(17);
  stream << value;
  const std::string text = stream.str();
  out += text;
  if (text.find_first_of(".e") == std::string::npos) out += ".0";
}

void write_value(std::string& out, const Json& value, size_t depth) {
  const auto line = [&](size_t levels) { out += "\n" + std::string(2 * levels, ' '); };
  if (const auto* object = value.object()) {
    out += "{";
    for (size_t i = 0; i < object->size(); ++i) {
      if (i) out += ",";
      line(depth + 1);
      write_string(out, (*object)[i].first);
      out += ": ";
      write_value(out, (*object)[i].second, depth + 1);
    }
    if (!object->empty()) line(depth);
    out += "}";
  } else if (const auto* array = value.array()) {
    const bool nested = std::any_of(array->begin(), array->end(),
                                    [](const Json& item) { return item.object() || item.array(); });
    out += "[";
    for (size_t i = 0; i < array->size(); ++i) {
      if (i) out += nested ? "," : ", ";
      if (nested) line(depth + 1);
      write_value(out, (*array)[i], depth + 1);
    }
    if (nested) line(depth);
    out += "]";
  } else if (const auto* text = value.string()) {
    write_string(out, *text);
  } else if (const auto* whole = value.integer()) {
    out += std::to_string(*whole);
  } else if (const auto* real = value.real()) {
    write_double(out, *real);
  } else if (const auto* flag = value.boolean()) {
    out += *flag ? "true" : "false";
  } else {
    out += "null";
  }
}

}  // namespace

const Json* Json::find(std::string_view name) const {
  const Object* members = object();
  if (!members) return nullptr;
  const auto found = std::find_if(members->begin(), members->end(),
                                  [&](const Member& member) { return member.first == name; });
  return found == members->end() ? nullptr : &found->second;
}

const char* Json::type_name() const {
  constexpr const char* names[] = {"null",     "a boolean", "an integer", "a number",
                                   "a string", "an array",  "an object"};
  return names[value_.index()];
}

Json parse_json(std::string_view text, const std::string& where, JsonLimits limits) {
  return Parser(text, where, limits).document();
}

std::string write_json(const Json& value) {
  std::string out;
  write_value(out, value, 0);
  out += "\n";
  return out;
}

JsonFields::JsonFields(const Json& value, std::string where, std::string path)
    : value_(&value), where_(std::move(where)), path_(std::move(path)) {
  if (!value.object()) {
    throw FormatError(where_ + (path_.empty() ? "" : ": " + path_) + ": wanted an object, got " +
                      value.type_name());
  }
}

std::string JsonFields::name_of(std::string_view field) const {
  return where_ + ": " + (path_.empty() ? "" : path_ + ".") + std::string(field);
}

void JsonFields::fail(std::string_view field, const std::string& what) const {
  throw FormatError(name_of(field) + " " + what);
}

bool JsonFields::has(std::string_view name) const {
  const Json* member = value_->find(name);
  return member && !member->is_null();
}

const Json& JsonFields::need(std::string_view name, const char* wanted) const {
  const Json* member = value_->find(name);
  if (!member || member->is_null()) fail(name, std::string("is missing; wanted ") + wanted);
  return *member;
}

int64_t JsonFields::integer(std::string_view name, int64_t least, int64_t most) const {
  const Json& member = need(name, "an integer");
  const int64_t* value = member.integer();
  if (!value) fail(name, std::string("must be an integer, got ") + member.type_name());
  if (*value < least || *value > most) {
    fail(name, "must be from " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                   std::to_string(*value));
  }
  return *value;
}

int64_t JsonFields::integer_or(std::string_view name, int64_t fallback, int64_t least,
                               int64_t most) const {
  return has(name) ? integer(name, least, most) : fallback;
}

double JsonFields::real(std::string_view name) const {
  const Json& member = need(name, "a number");
  if (const int64_t* whole = member.integer()) return static_cast<double>(*whole);
  const double* value = member.real();
  if (!value) fail(name, std::string("must be a number, got ") + member.type_name());
  if (!std::isfinite(*value)) fail(name, "must be finite");
  return *value;
}

double JsonFields::real_or(std::string_view name, double fallback) const {
  return has(name) ? real(name) : fallback;
}

bool JsonFields::boolean(std::string_view name) const {
  const Json& member = need(name, "true or false");
  const bool* value = member.boolean();
  if (!value) fail(name, std::string("must be true or false, got ") + member.type_name());
  return *value;
}

bool JsonFields::boolean_or(std::string_view name, bool fallback) const {
  return has(name) ? boolean(name) : fallback;
}

const std::string& JsonFields::string(std::string_view name) const {
  const Json& member = need(name, "a string");
  if (!member.string()) fail(name, std::string("must be a string, got ") + member.type_name());
  return *member.string();
}

const Json::Array& JsonFields::array(std::string_view name) const {
  const Json& member = need(name, "an array");
  if (!member.array()) fail(name, std::string("must be an array, got ") + member.type_name());
  return *member.array();
}

JsonFields JsonFields::fields(std::string_view name) const {
  const Json& member = need(name, "an object");
  return JsonFields(member, where_, path_.empty() ? std::string(name) : path_ + "." + std::string(name));
}

}  // namespace flash_moe::format
