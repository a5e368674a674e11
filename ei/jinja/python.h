#pragma once

#include <optional>
#include <string_view>

#include "ei/jinja/value.h"

// What Python's operators and built-in functions do to values. Everything throws Error where
// Python raises an exception, and where the meter is at its limit.
namespace ei::jinja {

bool truthy(const Value& value);
bool equal(Meter& meter, const Value& a, const Value& b);
bool less(Meter& meter, const Value& a, const Value& b);
bool same(const Value& a, const Value& b);  // a is b
enum class Comparison {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};
bool compare(Meter& meter, Comparison how, const Value& a, const Value& b);
bool contains(Meter& meter, const Value& container, const Value& item);

int64_t length(Meter& meter, const Value& value);

// What a loop over the value goes through: list items, characters, dict keys; nothing for an
// undefined value. Uses iterators up.
struct Items {
  auto begin() const { return list->items.begin(); }
  auto end() const { return list->items.end(); }
  size_t size() const { return list->items.size(); }
  bool empty() const { return list->items.empty(); }
  const Value& operator[](size_t i) const { return list->items[i]; }

  ListPtr list;
};
Items iterate(Meter& meter, const Value& value);

// value[key] and value.name, each falling back on the other. Absent: an undefined value that says
// so.
Value get_item(Meter& meter, const Value& value, const Value& key);
Value get_attribute(Meter& meter, const Value& value, std::string_view name);
// value[begin:end:step]; parts left out are none.
Value slice(Meter& meter, const Value& value, const Value& begin, const Value& end,
            const Value& step);

enum class Operator { kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo };
Value calculate(Meter& meter, Operator op, const Value& a, const Value& b);
Value negate(const Value& value);

// Numbers in text as int() and float() read them, or nothing. Beyond 64 bits is an Error.
std::optional<int64_t> parse_integer(std::string_view text);
std::optional<double> parse_float(std::string_view text);
int64_t to_integer(double value);  // towards zero

void print(Meter& meter, const Value& value, StringBuilder& out);  // str()
void print_repr(Meter& meter, const Value& value, StringBuilder& out);
Value to_string(Meter& meter, const Value& value);  // a string is returned as it is
std::string format_float(double value);             // repr()

// json.dumps().
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // none: on one line
  std::string item_separator = ", ", key_separator = ": ";
};
Value to_json(Meter& meter, const Value& value, const JsonStyle& style);

// Text for one parameter of a Python function: what a string holds, else Error naming `what`.
std::string_view text_of(const Value& value, std::string_view what);
int64_t integer_of(const Value& value, std::string_view what);

}  // namespace ei::jinja
