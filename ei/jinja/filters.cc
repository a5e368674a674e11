#include <cmath>

#include "ei/jinja/builtins.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

Value default_value(Meter& meter, Args& args) {
  const Parameters p(args, "default", {"value", "default_value", "boolean"}, 1);
  const bool absent = p.get(0).is<Undefined>() || (p.flag(2, false) && !truthy(p.get(0)));
  return !absent ? p.get(0) : p[1] ? *p[1] : make_string(meter, "");
}

Value string(Meter& meter, Args& args) {
  const Parameters p(args, "string", {"value"}, 1);
  return to_string(meter, p.get(0));
}

// Jinja makes a string of whatever such a filter is applied to.
using Mapping = std::string (*)(std::string_view);
template <Mapping kMapping>
Value map_text(Meter& meter, Args& args) {
  const Parameters p(args, "filter", {"s"}, 1);
  const Value text = to_string(meter, p.get(0));
  meter.work(text.string()->text.size());
  return make_string(meter, kMapping(text.string()->text));
}

// As the method of the same name, on whatever prints as text.
Value trim(Meter& meter, Args& args) {
  require(!args.positional.empty(), "trim needs a value");
  const Value text = to_string(meter, args.positional[0]);
  args.positional.erase(args.positional.begin());
  return bind_method(meter, text, "strip")->object()->call(meter, std::move(args));
}

Value replace_filter(Meter& meter, Args& args) {
  const Parameters p(args, "replace", {"s", "old", "new", "count"}, 3);
  const Value text = to_string(meter, p.get(0));
  const Value from = to_string(meter, p.get(1)), to = to_string(meter, p.get(2));
  const bool limited = p[3] != nullptr && !p[3]->is<None>();
  return replace(meter, text.string()->text, from.string()->text, to.string()->text,
                 limited ? p.integer(3, -1) : -1);
}

Value int_filter(Meter&, Args& args) {
  const Parameters p(args, "int", {"value", "default"}, 1);
  const Value& value = p.get(0);
  require_defined(value);
  if (value.integer()) return *value.integer();
  std::optional<double> number = value.number();
  if (const String* text = value.string()) {
    if (const auto whole = parse_integer(text->text)) return *whole;
    number = parse_float(text->text);
  }
  return number && std::isfinite(*number) ? Value(to_integer(*number))
         : p[1]                           ? *p[1]
                                          : Value(int64_t{0});
}

Value float_filter(Meter&, Args& args) {
  const Parameters p(args, "float", {"value", "default"}, 1);
  require_defined(p.get(0));
  std::optional<double> number = p.get(0).number();
  if (const String* text = p.get(0).string()) number = parse_float(text->text);
  return number ? Value(*number) : p[1] ? *p[1] : Value(0.0);
}

bool ends_line(char32_t c) {
  return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

// str.splitlines() of the text and one more end of a line.
void split_lines(std::string_view text, const Emit& emit) {
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text.substr(at));
    const size_t next = at + (text.substr(at).starts_with("\r\n") ? 2 : c.n_bytes);
    if (ends_line(c.value)) {
      emit(text.substr(begin, at - begin));
      begin = next;
    }
    at = next;
  }
  emit(text.substr(begin));
}

Value indent(Meter& meter, Args& args) {
  const Parameters p(args, "indent", {"s", "width", "first", "blank"}, 1);
  const std::string_view text = text_of(p.get(0), "s");
  StringBuilder margin(meter);
  if (p[1] != nullptr && p[1]->string() != nullptr)
    margin.append(p[1]->string()->text);
  else
    for (int64_t i = 0; i < p.integer(1, 4); ++i) margin.append(" ");

  meter.work(text.size());
  StringBuilder out(meter);
  bool is_first = true;
  split_lines(text, [&](std::string_view line) {
    if (!is_first) out.append("\n");
    if (is_first ? p.flag(2, false) : p.flag(3, false) || !line.empty()) out.append(margin.text());
    out.append(line);
    is_first = false;
  });
  return std::move(out).finish();
}

Value to_json_filter(Meter& meter, Args& args) {
  const Parameters p(args, "tojson", {"x", "ensure_ascii", "indent", "separators", "sort_keys"}, 1);
  JsonStyle style;
  style.ensure_ascii = p.flag(1, false);
  style.sort_keys = p.flag(4, false);
  if (p[2] != nullptr && !p[2]->is<None>()) {
    style.item_separator = ",";
    const int64_t width = p[2]->string() != nullptr ? 0 : p.integer(2, 0);
    require(width <= 1000, "tojson(): indent is {}, expected at most 1000", width);
    style.indent = p[2]->string() != nullptr
                       ? p[2]->string()->text
                       : std::string(static_cast<size_t>(std::max<int64_t>(0, width)), ' ');
  }
  if (p[3] != nullptr && !p[3]->is<None>()) {
    const Items separators = iterate(meter, *p[3]);
    require(separators.size() == 2, "tojson(): separators must be two strings");
    style.item_separator = text_of(separators[0], "a separator");
    style.key_separator = text_of(separators[1], "a separator");
  }
  return to_json(meter, p.get(0), style);
}

constexpr NamedFunction kFilters[] = {
    {"capitalize", map_text<capitalize>},
    {"d", default_value},
    {"default", default_value},
    {"float", float_filter},
    {"indent", indent},
    {"int", int_filter},
    {"lower", map_text<lower>},
    {"replace", replace_filter},
    {"safe", string},  // nothing is escaped, so that everything is safe
    {"string", string},
    {"title", map_text<title_words>},
    {"tojson", to_json_filter},
    {"trim", trim},
    {"upper", map_text<upper>},
};

}  // namespace

Function find_filter(std::string_view name) {
  const Function of_text = find_function(kFilters, name);
  return of_text != nullptr ? of_text : find_list_filter(name);
}

}  // namespace ei::jinja
