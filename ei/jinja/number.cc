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

// The remainder has the sign of the divisor.
double floor_modulo(double a, double b) {
  require(b != 0, "float modulo by zero");
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double floor_divide(double a, double b) {
  require(b != 0, "float floor division by zero");
  const double exact = (a - floor_modulo(a, b)) / b;
  const double whole = std::floor(exact);
  return whole == 0 ? std::copysign(0.0, a / b) : exact - whole > 0.5 ? whole + 1 : whole;
}

Value power(const Value& base, const Value& exponent) {
  if (!base.integer() || !exponent.integer() || *exponent.integer() < 0) {
    const double b = *base.number(), e = *exponent.number();
    require(b != 0 || e >= 0, "zero to a negative power");
    require(b >= 0 || std::isinf(b) || std::isinf(e) || e == std::floor(e) || std::isnan(e),
            "the result of ** is not a real number");
    const double result = std::pow(b, e);
    require(!std::isinf(result) || std::isinf(b) || std::isinf(e), "the result of ** is too large");
    return result;
  }
  int64_t b = *base.integer(), e = *exponent.integer(), result = 1;
  while (e > 0) {
    if ((e & 1) != 0 && __builtin_mul_overflow(result, b, &result)) overflow();
    if ((e >>= 1) > 0 && __builtin_mul_overflow(b, b, &b)) overflow();
  }
  return result;
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
    case Operator::kDivide:
      require(b != 0, "division by zero");
      return a / b;
    case Operator::kFloorDivide:
      return floor_divide(a, b);
    default:
      return floor_modulo(a, b);
  }
}

Value concatenate(Meter& meter, const String& a, const String& b) {
  const bool safe = a.safe || b.safe;
  StringBuilder out(meter);
  for (const String* part : {&a, &b})
    out.append(safe && !part->safe ? escape_html(part->text) : part->text);
  return std::move(out).finish(safe);
}

Value concatenate(Meter& meter, const List& a, const List& b) {
  ListBuilder out(meter);
  for (const List* part : {&a, &b})
    for (const Value& item : part->items) out.push(item);
  return std::move(out).finish(a.form);
}

bool is_repeatable(const Value& value) {
  return value.string() || (value.list() && value.list()->form <= List::Form::kTuple);
}

Value repeat(Meter& meter, const Value& sequence, int64_t n) {
  if (const String* string = sequence.string()) {
    StringBuilder out(meter);
    if (!string->text.empty())
      for (int64_t i = 0; i < n; ++i) out.append(string->text);
    return std::move(out).finish(string->safe);
  }
  const List& list = *sequence.list();
  ListBuilder out(meter);
  if (!list.items.empty())
    for (int64_t i = 0; i < n; ++i)
      for (const Value& item : list.items) out.push(item);
  return std::move(out).finish(list.form);
}

// Python allows white space around a number and underscores between its digits.
std::optional<std::string> plain_number(std::string_view text) {
  text = strip(text, Side::kBoth);
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      plain += text[i];
    } else if (i == 0 || i + 1 == text.size() || !std::isxdigit(text[i - 1] & 0x7F) ||
               !std::isxdigit(text[i + 1] & 0x7F)) {
      return std::nullopt;
    }
  }
  return plain;
}

}  // namespace

Value calculate(Meter& meter, Operator op, const Value& a, const Value& b) {
  if (op == Operator::kModulo && a.string()) return format_percent(meter, a.string()->text, b);
  require_defined(a);
  require_defined(b);
  if (a.number() && b.number()) {
    if (op == Operator::kPower) return power(a, b);
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
  constexpr const char* kSigns[] = {"+", "-", "*", "/", "//", "%", "**"};
  fail("unsupported operand types for {}: '{}' and '{}'", kSigns[static_cast<size_t>(op)],
       type_name(a), type_name(b));
}

Value negate(const Value& value, bool negative) {
  require_defined(value);
  if (const auto i = value.integer()) {
    if (negative && *i == std::numeric_limits<int64_t>::min()) overflow();
    return negative ? -*i : *i;
  }
  require(value.number().has_value(), "bad operand type for unary {}: '{}'", negative ? '-' : '+',
          type_name(value));
  return negative ? -*value.number() : *value.number();
}

Value round_number(const Value& value, int64_t digits) {
  require_defined(value);
  if (const auto i = value.integer(); i && digits >= 0) return *i;
  require(value.number().has_value(), "'{}' cannot be rounded", type_name(value));
  const double number = *value.number();
  if (!std::isfinite(number) || digits > 330) return value;
  double rounded = 0;
  if (digits >= 0) {
    // Through decimal digits, as Python does: exact, ties to even.
    rounded = *parse_float(fmt::format("{:.{}f}", number, digits));
  } else {
    const double scale = digits < -308 ? INFINITY : std::pow(10.0, static_cast<double>(-digits));
    rounded = std::isinf(scale) ? 0.0 * number : std::nearbyint(number / scale) * scale;
  }
  return value.integer() ? Value(to_integer(rounded)) : Value(rounded);
}

std::optional<int64_t> parse_integer(std::string_view text, int base) {
  const auto plain = plain_number(text);
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  const auto skip = [&](char letter) {
    if (digits.size() < 2 || digits[0] != '0' || (digits[1] | 0x20) != letter) return false;
    digits.remove_prefix(2);
    return true;
  };
  if ((base == 0 || base == 16) && skip('x'))
    base = 16;
  else if ((base == 0 || base == 8) && skip('o'))
    base = 8;
  else if ((base == 0 || base == 2) && skip('b'))
    base = 2;
  else if (base == 0 && digits.starts_with('0') && digits.find_first_not_of('0') != digits.npos)
    return std::nullopt;
  uint64_t magnitude = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), magnitude, base ? base : 10);
  if (digits.empty() || end != digits.data() + digits.size() ||
      error == std::errc::invalid_argument)
    return std::nullopt;
  if (error != std::errc() || magnitude > uint64_t{INT64_MAX} + negative) overflow();
  return negative ? static_cast<int64_t>(uint64_t{0} - magnitude) : static_cast<int64_t>(magnitude);
}

std::optional<double> parse_float(std::string_view text) {
  const auto plain = plain_number(text);
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  if (digits.empty() || digits[0] == '-' || digits.find('(') != digits.npos) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size() || error == std::errc::invalid_argument)
    return std::nullopt;
  // Out of range: tell too small from too large by reading it once more.
  if (error == std::errc::result_out_of_range)
    value = std::strtod(std::string(digits).c_str(), nullptr);
  return negative ? -value : value;
}

int64_t to_integer(double value) {
  require(!std::isnan(value), "cannot convert float NaN to integer");
  if (!(value > -0x1p63 - 1 && value < 0x1p63)) overflow();
  return static_cast<int64_t>(value);
}

}  // namespace ei::jinja
