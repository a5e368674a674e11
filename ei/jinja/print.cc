#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>

#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

void print_items(Meter& meter, const std::vector<Value>& items, StringBuilder& out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ");
    print_repr(meter, items[i], out);
  }
}

void print_list(Meter& meter, const List& list, StringBuilder& out) {
  switch (list.form) {
    case List::Form::kList:
      out.append("[");
      print_items(meter, list.items, out);
      return out.append("]");
    case List::Form::kTuple:
      out.append("(");
      print_items(meter, list.items, out);
      return out.append(list.items.size() == 1 ? ",)" : ")");
    case List::Form::kIterator:
      return out.append("<generator object>");
  }
}

void print_dict(Meter& meter, const Dict& dict, StringBuilder& out) {
  out.append("{");
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out.append(", ");
    print_repr(meter, dict.items[i].first, out);
    out.append(": ");
    print_repr(meter, dict.items[i].second, out);
  }
  out.append("}");
}

// A string in JSON's quotes.
void quote_json(std::string_view text, bool ensure_ascii, StringBuilder& out) {
  std::string quoted = "\"";
  const auto unicode = [&](uint32_t unit) {
    fmt::format_to(std::back_inserter(quoted), "\\u{:04x}", unit);
  };
  for_each_char(text, [&](char32_t c, std::string_view bytes) {
    constexpr std::string_view kControls = "\b\t\n\f\r", kLetters = "btnfr";
    const size_t control = bytes.size() == 1 ? kControls.find(bytes) : std::string_view::npos;
    const auto code = static_cast<uint32_t>(c);
    if (c == '"' || c == '\\') {
      (quoted += '\\') += bytes;
    } else if (control != std::string_view::npos) {
      (quoted += '\\') += kLetters[control];
    } else if (c < 0x20 || (ensure_ascii && c > 0x7E && c < 0x10000)) {
      unicode(code);
    } else if (ensure_ascii && c >= 0x10000) {
      unicode(0xD800 + ((code - 0x10000) >> 10));
      unicode(0xDC00 + ((code - 0x10000) & 0x3FF));
    } else {
      quoted += bytes;
    }
  });
  out.append(quoted += '"');
}

class JsonPrinter {
 public:
  JsonPrinter(Meter& meter, const JsonStyle& style, StringBuilder& out)
      : meter_(meter), style_(style), out_(out) {}

  void value(const Value& v, int depth) {
    meter_.step();
    if (const String* string = v.string()) {
      quote_json(string->text, style_.ensure_ascii, out_);
    } else if (const Dict* dict = v.dict()) {
      object(*dict, depth);
    } else if (const List* list = v.list();
               list != nullptr && list->form != List::Form::kIterator) {
      array(*list, depth);
    } else {
      out_.append(scalar(v));
    }
  }

 private:
  static std::string scalar(const Value& v) {
    if (v.is<None>()) return "null";
    if (const bool* b = v.as<bool>()) return *b ? "true" : "false";
    if (const int64_t* i = v.as<int64_t>()) return fmt::format("{}", *i);
    if (const double* d = v.as<double>()) {
      if (std::isnan(*d)) return "NaN";
      if (std::isinf(*d)) return *d > 0 ? "Infinity" : "-Infinity";
      return format_float(*d);
    }
    fail("Object of type {} is not JSON serializable", type_name(v));
  }

  void array(const List& list, int depth) {
    out_.append("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      separate(i == 0, depth + 1);
      value(list.items[i], depth + 1);
    }
    if (!list.items.empty()) new_line(depth);
    out_.append("]");
  }

  void object(const Dict& dict, int depth) {
    std::vector<size_t> order(dict.items.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (style_.sort_keys)
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return less(meter_, dict.items[a].first, dict.items[b].first);
      });
    out_.append("{");
    for (size_t i = 0; i < order.size(); ++i) {
      const auto& [key, item] = dict.items[order[i]];
      separate(i == 0, depth + 1);
      quote_json(key.string() ? key.string()->text : scalar(key), style_.ensure_ascii, out_);
      out_.append(style_.key_separator);
      value(item, depth + 1);
    }
    if (!order.empty()) new_line(depth);
    out_.append("}");
  }

  void separate(bool is_first, int depth) {
    if (!is_first) out_.append(style_.item_separator);
    new_line(depth);
  }

  void new_line(int depth) {
    if (!style_.indent) return;
    out_.append("\n");
    for (int i = 0; i < depth; ++i) out_.append(*style_.indent);
  }

  Meter& meter_;
  const JsonStyle& style_;
  StringBuilder& out_;
};

}  // namespace

std::string format_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // The fewest digits that read back as the same number, as Python has them; exponents of at
  // least 16 or below -4 are written out.
  std::array<char, 400> buffer;
  const auto shortest = [&](std::chars_format form) {
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, form).ptr;
    return std::string(buffer.data(), end);
  };
  const std::string scientific = shortest(std::chars_format::scientific);
  const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  const std::string fixed = shortest(std::chars_format::fixed);
  return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

void print(Meter& meter, const Value& value, StringBuilder& out) {
  if (const String* string = value.string())
    out.append(string->text);
  else if (!value.is<Undefined>())
    print_repr(meter, value, out);
}

void print_repr(Meter& meter, const Value& value, StringBuilder& out) {
  meter.step();
  const Level level(meter);
  if (const String* string = value.string()) {
    out.append(quote(string->text));
  } else if (const List* list = value.list()) {
    print_list(meter, *list, out);
  } else if (const Dict* dict = value.dict()) {
    print_dict(meter, *dict, out);
  } else if (Object* object = value.object()) {
    out.append(object->repr(meter));
  } else if (const bool* b = value.as<bool>()) {
    out.append(*b ? "True" : "False");
  } else if (const int64_t* i = value.as<int64_t>()) {
    out.append(fmt::format("{}", *i));
  } else if (const double* d = value.as<double>()) {
    out.append(format_float(*d));
  } else {
    out.append(value.is<None>() ? "None" : "Undefined");
  }
}

Value to_string(Meter& meter, const Value& value) {
  if (value.string() != nullptr) return value;
  StringBuilder out(meter);
  print(meter, value, out);
  return std::move(out).finish();
}

Value to_json(Meter& meter, const Value& value, const JsonStyle& style) {
  StringBuilder out(meter);
  JsonPrinter(meter, style, out).value(value, 0);
  return std::move(out).finish();
}

}  // namespace ei::jinja
