#include "format/json.h"

#include <string>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::FormatError;
using flash_moe::format::Json;
using flash_moe::format::JsonFields;
using flash_moe::format::parse_json;
using flash_moe::format::write_json;

static Json parse(const std::string& text) { return parse_json(text, "f.json"); }

TEST(json_reads_every_kind_of_value) {
  const Json json = parse(R"( {"a": [1, -2, 0.5, 1e3, true, false, null], "b": {"c": "x"}, "d": [], "e": {}} )");
  const Json::Array& a = *json.find("a")->array();
  CHECK(*a[0].integer() == 1 && *a[1].integer() == -2);
  CHECK(*a[2].real() == 0.5 && *a[3].real() == 1000.0);
  CHECK(*a[4].boolean() && !*a[5].boolean() && a[6].is_null());
  CHECK(*json.find("b")->find("c")->string() == "x");
  CHECK(json.find("d")->array()->empty() && json.find("e")->object()->empty());
  CHECK(json.find("z") == nullptr);
}

TEST(json_integers_keep_all_64_bits_and_larger_ones_become_doubles) {
  CHECK(*parse("9223372036854775807").integer() == INT64_MAX);
  CHECK(*parse("-9223372036854775808").integer() == INT64_MIN);
  CHECK(*parse("9223372036854775808").real() == 9223372036854775808.0);
  CHECK(*parse("1000000000000000019884624838656").real() == 1e30);
}

TEST(json_decodes_escapes_and_surrogate_pairs) {
  CHECK(*parse(R"("\"\\\/\b\f\n\r\t\u00e9\u20ac\ud83d\ude00")").string() == "\"\\/\b\f\n\r\t\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
}

TEST(json_says_line_and_column) {
  CHECK_THROWS(parse("{\n  \"a\": 1,\n  \"b\" 2\n}"), FormatError, "f.json:3:7: wanted ':' after \"b\"");
}

TEST(json_rejects_what_is_not_json) {
  CHECK_THROWS(parse(""), FormatError, "wanted a JSON value, got the end of the text");
  CHECK_THROWS(parse("{} x"), FormatError, "text after the end");
  CHECK_THROWS(parse("[1,]"), FormatError, "wanted a JSON value");
  CHECK_THROWS(parse("{\"a\":1,}"), FormatError, "member name");
  CHECK_THROWS(parse("{a:1}"), FormatError, "member name");
  CHECK_THROWS(parse("[1 2]"), FormatError, "',' or ']'");
  CHECK_THROWS(parse("{\"a\":1 \"b\":2}"), FormatError, "',' or '}'");
  CHECK_THROWS(parse("01"), FormatError, "starts with 0");
  CHECK_THROWS(parse("+1"), FormatError, "wanted a JSON value");
  CHECK_THROWS(parse("1."), FormatError, "after the decimal point");
  CHECK_THROWS(parse("1e"), FormatError, "in the exponent");
  CHECK_THROWS(parse("1e999"), FormatError, "does not fit a double");
  CHECK_THROWS(parse("tru"), FormatError, "wanted a JSON value");
  CHECK_THROWS(parse("\"abc"), FormatError, "does not end");
  CHECK_THROWS(parse("\"a\nb\""), FormatError, "control character");
  CHECK_THROWS(parse(R"("\x")"), FormatError, "unknown escape");
  CHECK_THROWS(parse(R"("\u12g4")"), FormatError, "hexadecimal");
  CHECK_THROWS(parse(R"("\ud83d")"), FormatError, "surrogate");
  CHECK_THROWS(parse(R"("\ude00")"), FormatError, "surrogate");
}

TEST(json_rejects_duplicate_members_at_any_depth) {
  CHECK_THROWS(parse(R"({"a": {"b": 1, "c": 2, "b": 3}})"), FormatError, "two members named \"b\"");
}

TEST(json_rejects_text_that_is_not_utf8) {
  for (const char* bytes : {"\"\x80\"", "\"\xc0\x80\"", "\"\xe0\x80\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc3\"", "\"\xff\""}) {
    CHECK_THROWS(parse(bytes), FormatError, "not UTF-8");
  }
}

TEST(json_limits_depth) {
  const std::string at_limit = std::string(65, '[') + std::string(65, ']');
  CHECK(parse(at_limit).array() != nullptr);
  CHECK_THROWS(parse(std::string(66, '[') + std::string(66, ']')), FormatError, "nested deeper than 64");
  CHECK_THROWS(parse(std::string(1000000, '[')), FormatError, "nested deeper than 64");
}

TEST(json_takes_python_specials_only_where_asked) {
  CHECK_THROWS(parse("[NaN]"), FormatError, "not JSON");
  CHECK_THROWS(parse("[-Infinity]"), FormatError, "not JSON");
  const Json json = parse_json("[NaN, Infinity, -Infinity]", "f", {.depth = 64, .non_finite = true});
  CHECK(std::isnan(*(*json.array())[0].real()) && *(*json.array())[2].real() < 0);
}

TEST(json_written_is_read_back_equal) {
  const std::string text = write_json(Json::Object{{"a", Json::Array{1, 2.5, "q\"\\\n\x01", true, Json()}},
                                                   {"b", Json::Array{Json::Array{}, Json::Object{}}},
                                                   {"c", 0.1},
                                                   {"d", 1e300},
                                                   {"e", INT64_MIN}});
  const Json json = parse(text);
  CHECK(write_json(json) == text);
  CHECK(*json.find("c")->real() == 0.1 && *json.find("d")->real() == 1e300);
  CHECK(*json.find("e")->integer() == INT64_MIN);
  CHECK(*(*json.find("a")->array())[2].string() == "q\"\\\n\x01");
}

TEST(json_fields_name_file_path_and_reason) {
  const Json json = parse(R"({"t": {"n": 7, "s": "x", "r": 1.5, "z": null, "b": true}})");
  const JsonFields fields = JsonFields(json, "f.json").fields("t");
  CHECK(fields.integer("n", 0, 7) == 7 && fields.real("n") == 7.0 && fields.integer_or("no", 3, 0, 9) == 3);
  CHECK(fields.boolean("b") && fields.string("s") == "x" && !fields.has("z") && fields.real_or("z", 2) == 2);
  CHECK_THROWS(fields.integer("n", 8, 9), FormatError, "f.json: t.n must be from 8 to 9, got 7");
  CHECK_THROWS(fields.integer("r", 0, 9), FormatError, "f.json: t.r must be an integer, got a number");
  CHECK_THROWS(fields.integer("q", 0, 9), FormatError, "f.json: t.q is missing; wanted an integer");
  CHECK_THROWS(fields.real("s"), FormatError, "t.s must be a number, got a string");
  CHECK_THROWS(fields.boolean("n"), FormatError, "t.n must be true or false");
  CHECK_THROWS(fields.string("n"), FormatError, "t.n must be a string");
  CHECK_THROWS(fields.array("n"), FormatError, "t.n must be an array");
  CHECK_THROWS(fields.fields("n"), FormatError, "f.json: t.n: wanted an object, got an integer");
}
