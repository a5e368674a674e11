#include <algorithm>
#include <cmath>

#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

// One "%" directive: %(key)flags width.precision type.
struct Directive {
  std::string key;
  bool has_key = false;
  bool left = false, plus = false, space = false, zero = false, alternate = false;
  int64_t width = 0;
  int64_t precision = -1;
  char type = 0;
};

constexpr int64_t kMaxWidth = 1 << 20;

class Formatter {
 public:
  Formatter(Meter& meter, std::string_view format, const Value& values)
      : meter_(meter), rest_(format), values_(values), out_(meter) {
    if (const List* list = values.list(); list != nullptr && list->form == List::Form::kTuple)
      tuple_ = list;
  }

  Value run() && {
    meter_.work(rest_.size());
    while (!rest_.empty()) {
      const size_t percent = std::min(rest_.find('%'), rest_.size());
      out_.append(rest_.substr(0, percent));
      rest_.remove_prefix(percent);
      if (!rest_.empty()) write(parse());
    }
    // A tuple must be used up, and a single value unless it could have been asked for items.
    const bool all_used = tuple_ != nullptr ? n_used_ == tuple_->items.size()
                                            : n_used_ > 0 || values_.dict() || values_.list() ||
                                                  values_.is<Undefined>();
    require(all_used, "not all arguments converted during string formatting");
    return std::move(out_).finish();
  }

 private:
  char take() {
    require(!rest_.empty(), "incomplete format");
    const char c = rest_[0];
    rest_.remove_prefix(1);
    return c;
  }

  const Value& next_value() {
    const bool has_more = tuple_ != nullptr ? n_used_ < tuple_->items.size() : n_used_ == 0;
    require(has_more, "not enough arguments for format string");
    ++n_used_;
    return tuple_ != nullptr ? tuple_->items[n_used_ - 1] : values_;
  }

  int64_t parse_count() {
    int64_t n = 0;
    if (rest_.starts_with('*')) {
      take();
      n = integer_of(next_value(), "*");
    } else {
      while (!rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9' && n <= kMaxWidth)
        n = n * 10 + (take() - '0');
    }
    require(n >= -kMaxWidth && n <= kMaxWidth, "a width in the format is larger than {}",
            kMaxWidth);
    return n;
  }

  Directive parse() {
    Directive d;
    take();
    if (rest_.starts_with('(')) {
      take();
      d.has_key = true;
      for (int depth = 1;;) {
        const char c = take();
        depth += (c == '(') - (c == ')');
        if (depth == 0) break;
        d.key += c;
      }
    }
    for (; !rest_.empty(); take()) {
      if (rest_[0] == '-')
        d.left = true;
      else if (rest_[0] == '+')
        d.plus = true;
      else if (rest_[0] == ' ')
        d.space = true;
      else if (rest_[0] == '0')
        d.zero = true;
      else if (rest_[0] == '#')
        d.alternate = true;
      else
        break;
    }
    d.width = parse_count();
    if (d.width < 0) {
      d.left = true;
      d.width = -d.width;
    }
    if (rest_.starts_with('.')) {
      take();
      d.precision = std::max<int64_t>(0, parse_count());
    }
    while (rest_.starts_with('l') || rest_.starts_with('h') || rest_.starts_with('L')) take();
    d.type = take();
    return d;
  }

  const Value& value_for(const Directive& d) {
    if (!d.has_key) return next_value();
    require(values_.dict() != nullptr, "format requires a mapping");
    const Value* found = values_.dict()->find(d.key);
    require(found != nullptr, "the format's key '{}' is not in the dict", d.key);
    return *found;
  }

  void write(const Directive& d) {
    if (d.type == '%') return out_.append("%");
    const Value& value = value_for(d);
    switch (d.type) {
      case 's':
      case 'r':
      case 'a':
        return write_text(d, value);
      case 'c':
        return write_character(d, value);
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
        return write_integer(d, value);
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        return write_float(d, value);
      default:
        fail("unsupported format character '{}'", d.type);
    }
  }

  // `sign` and `prefix` stay in front of the zeros.
  void write_padded(const Directive& d, std::string_view front, std::string_view body, bool zeros) {
    const auto n =
        static_cast<size_t>(std::max<int64_t>(0, d.width - count_chars(front) - count_chars(body)));
    const bool fill_zeros = zeros && d.zero && !d.left;
    if (!d.left && !fill_zeros) out_.append(n, ' ');
    out_.append(front);
    if (fill_zeros) out_.append(n, '0');
    out_.append(body);
    if (d.left) out_.append(n, ' ');
  }

  void write_text(const Directive& d, const Value& value) {
    StringBuilder text(meter_);
    d.type == 's' ? print(meter_, value, text) : print_repr(meter_, value, text);
    std::string_view shown = text.text();
    if (d.precision >= 0) shown = shown.substr(0, char_offset(shown, d.precision));
    write_padded(d, "", shown, /*zeros=*/false);
  }

  void write_character(const Directive& d, const Value& value) {
    require_defined(value);
    std::string one;
    if (const auto code = value.as<int64_t>()) {
      require(*code >= 0 && *code < 0x110000 && (*code < 0xD800 || *code > 0xDFFF),
              "%c: {} is no character", *code);
      append_char(one, static_cast<char32_t>(*code));
    } else {
      one = text_of(value, "%c");
      require(count_chars(one) == 1, "%c requires int or char");
    }
    write_padded(d, "", one, /*zeros=*/false);
  }

  static std::string_view sign_of(const Directive& d, bool negative) {
    return negative ? "-" : d.plus ? "+" : d.space ? " " : "";
  }

  void write_integer(const Directive& d, const Value& value) {
    require_defined(value);
    const bool decimal = d.type == 'd' || d.type == 'i' || d.type == 'u';
    require(value.integer() || (decimal && value.number()),
            "%{} format: a number is required, "
            "not '{}'",
            d.type, type_name(value));
    const int64_t n = value.integer() ? *value.integer() : to_integer(*value.number());
    const uint64_t magnitude =
        n < 0 ? uint64_t{0} - static_cast<uint64_t>(n) : static_cast<uint64_t>(n);
    std::string digits = d.type == 'x'   ? fmt::format("{:x}", magnitude)
                         : d.type == 'X' ? fmt::format("{:X}", magnitude)
                         : d.type == 'o' ? fmt::format("{:o}", magnitude)
                                         : fmt::format("{}", magnitude);
    if (static_cast<int64_t>(digits.size()) < d.precision)
      digits.insert(0, static_cast<size_t>(d.precision) - digits.size(), '0');
    std::string front(sign_of(d, n < 0));
    if (d.alternate && !decimal) (front += '0') += d.type;
    write_padded(d, front, digits, /*zeros=*/true);
  }

  void write_float(const Directive& d, const Value& value) {
    require_defined(value);
    require(value.number().has_value(), "must be real number, not '{}'", type_name(value));
    const double number = *value.number();
    const auto precision = static_cast<int>(d.precision < 0 ? 6 : d.precision);
    require(precision <= 1000, "a precision in the format is larger than 1000");
    const std::string spec = fmt::format("{{:{}.{{}}{}}}", d.alternate ? "#" : "", d.type);
    const std::string body = fmt::format(fmt::runtime(spec), std::fabs(number), precision);
    write_padded(d, sign_of(d, std::signbit(number) && !std::isnan(number)), body, /*zeros=*/true);
  }

  Meter& meter_;
  std::string_view rest_;
  const Value& values_;
  const List* tuple_ = nullptr;
  size_t n_used_ = 0;
  StringBuilder out_;
};

}  // namespace

Value format_percent(Meter& meter, std::string_view format, const Value& values) {
  return Formatter(meter, format, values).run();
}

}  // namespace ei::jinja
