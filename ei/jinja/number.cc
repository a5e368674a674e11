#include <charconv>
#include <cmath>
#include <limits>

#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

[[noreturn]] void overflow() { fail("the result does not fit a 64-bit integer"); }

int64_t floor_divide(int64_t a, int64_t b) {
  require(b != 0, "integer division or modulo by zero");
  if (a == std::numeric_limits<int64_t>::min() && b == -1) overflow();
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

Value calculate_integers(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflows = false;
  switch (op) {
    case Operator::kAdd:
      overflows = __builtin_add_overflow(a, b, &result);
      break;
    case Operator::kSubtract:
      overflows = __builtin_sub_overflow(a, b, &result);
      break;
    case Operator::kMultiply:
      overflows = __builtin_mul_overflow(a, b, &result);
      break;
    case Operator::kFloorDivide:
      return floor_divide(a, b);
    case Operator::kModulo:
      return b == -1 ? 0 : a - floor_divide(a, b) * b;
    default:
      break;
  }
  if (overflows) overflow();
  return result;
}

Value calculate_floats(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return a + b;
    case Operator::kSubtract:
      return a - b;
    case Operator::kMultiply:
      return a * b;
    default:
      break;
  }
  require(b != 0, "division by zero");
  if (op == Operator::kDivide) return a / b;
  if (op == Operator::kFloorDivide) return std::floor(a / b);
  const double rest = std::fmod(a, b);  // of the divisor's sign
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Value concatenate(Meter& meter, const String& a, const String& b) {
  StringBuilder out(meter);
  out.append(a.text);
  out.append(b.text);
  return std::move(out).finish();
}

Value concatenate(Meter& meter, const List& a, const List& b) {
  ListBuilder out(meter);
  for (const List* part : {&a, &b})
    for (const Value& item : part->items) out.push(item);
  return std::move(out).finish(a.form);
}

bool is_repeatable(const Value& value) {
  return value.string() || (value.list() && value.list()->form != List::Form::kIterator);
}

Value repeat(Meter& meter, const Value& sequence, int64_t n) {
  if (const String* string = sequence.string()) {
    StringBuilder out(meter);
    if (!string->text.empty())
      for (int64_t i = 0; i < n; ++i) out.append(string->text);
    return std::move(out).finish();
  }
  const List& list = *sequence.list();
  ListBuilder out(meter);
  if (!list.items.empty())
    for (int64_t i = 0; i < n; ++i)
      for (const Value& item : list.items) out.push(item);
  return std::move(out).finish(list.form);
}

}  // namespace

Value calculate(Meter& meter, Operator op, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  if (a.number() && b.number()) {
    if (a.integer() && b.integer() && op != Operator::kDivide)
      return calculate_integers(op, *a.integer(), *b.integer());
    return calculate_floats(op, *a.number(), *b.number());
  }
  if (op == Operator::kAdd) {
    if (a.string() && b.string()) return concatenate(meter, *a.string(), *b.string());
    if (a.list() && b.list() && a.list()->form == b.list()->form && is_repeatable(a))
      return concatenate(meter, *a.list(), *b.list());
  }
  if (op == Operator::kMultiply) {
    if (is_repeatable(a) && b.integer()) return repeat(meter, a, *b.integer());
    if (is_repeatable(b) && a.integer()) return repeat(meter, b, *a.integer());
  }
  constexpr const char* kSigns[] = {"+", "-", "*", "/", "//", "%"};
  fail("unsupported operand types for {}: '{}' and '{}'", kSigns[static_cast<size_t>(op)],
       type_name(a), type_name(b));
}

Value negate(const Value& value) {
  require_defined(value);
  if (const auto i = value.integer()) return calculate_integers(Operator::kSubtract, 0, *i);
  require(value.number().has_value(), "bad operand type for unary -: '{}'", type_name(value));
  return -*value.number();
}

std::optional<int64_t> parse_integer(std::string_view text) {
  text = strip(text, Side::kBoth);
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) overflow();
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value)
                                                                  : std::nullopt;
}

std::optional<double> parse_float(std::string_view text) {
  text = strip(text, Side::kBoth);
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || text.back() == ')' || end != text.data() + text.size() ||
      error == std::errc::invalid_argument)
    return std::nullopt;
  // Out of range: tell too small from too large by reading it once more.
  if (error == std::errc::result_out_of_range)
    value = std::strtod(std::string(text).c_str(), nullptr);
  return value;
}

int64_t to_integer(double value) {
  require(!std::isnan(value), "cannot convert float NaN to integer");
  if (!(value > -0x1p63 - 1 && value < 0x1p63)) overflow();
  return static_cast<int64_t>(value);
}

}  // namespace ei::jinja
