#include "ei/jinja/filters.h"

#include <cmath>

#include "ei/jinja/python.h"
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
  return make_string(meter, kMapping(text.string()->text), text.string()->safe);
}

// As the method of the same name, on whatever prints as text.
Value as_method(Meter& meter, Args& args, std::string_view name) {
  require(!args.positional.empty(), "{} needs a value", name);
  const Value text = to_string(meter, args.positional[0]);
  args.positional.erase(args.positional.begin());
  return bind_method(meter, text, name)->object()->call(meter, std::move(args));
}

Value trim(Meter& meter, Args& args) { return as_method(meter, args, "strip"); }

Value center(Meter& meter, Args& args) {
  if (args.positional.size() == 1 && args.named.empty()) args.positional.push_back(int64_t{80});
  return as_method(meter, args, "center");
}

Value replace_filter(Meter& meter, Args& args) {
  const Parameters p(args, "replace", {"s", "old", "new", "count"}, 3);
  const Value text = to_string(meter, p.get(0));
  const Value from = to_string(meter, p.get(1)), to = to_string(meter, p.get(2));
  const bool limited = p[3] != nullptr && !p[3]->is<None>();
  return replace(meter, *make_string(meter, text.string()->text).string(), from.string()->text,
                 to.string()->text, limited ? p.integer(3, -1) : -1);
}

Value escape(Meter& meter, Args& args) {
  const Parameters p(args, "escape", {"s"}, 1);
  const Value text = to_string(meter, p.get(0));
  meter.work(text.string()->text.size());
  return text.string()->safe ? text
                             : make_string(meter, escape_html(text.string()->text), /*safe=*/true);
}

Value force_escape(Meter& meter, Args& args) {
  const Parameters p(args, "forceescape", {"value"}, 1);
  const Value text = to_string(meter, p.get(0));
  meter.work(text.string()->text.size());
  return make_string(meter, escape_html(text.string()->text), /*safe=*/true);
}

Value safe(Meter& meter, Args& args) {
  const Parameters p(args, "safe", {"value"}, 1);
  return make_string(meter, to_string(meter, p.get(0)).string()->text, /*safe=*/true);
}

Value int_filter(Meter&, Args& args) {
  const Parameters p(args, "int", {"value", "default", "base"}, 1);
  const Value& value = p.get(0);
  const Value fallback = p[1] ? *p[1] : Value(int64_t{0});
  require_defined(value);
  if (value.integer()) return *value.integer();
  std::optional<double> number = value.number();
  if (const String* text = value.string()) {
    const int64_t base = p.integer(2, 10);
    require(base == 0 || (base >= 2 && base <= 36), "int(): base must be 0 or 2 to 36");
    if (const auto whole = parse_integer(text->text, static_cast<int>(base))) return *whole;
    number = parse_float(text->text);
  }
  return number && std::isfinite(*number) ? Value(to_integer(*number)) : fallback;
}

Value float_filter(Meter&, Args& args) {
  const Parameters p(args, "float", {"value", "default"}, 1);
  require_defined(p.get(0));
  std::optional<double> number = p.get(0).number();
  if (const String* text = p.get(0).string()) number = parse_float(text->text);
  return number ? Value(*number) : p[1] ? *p[1] : Value(0.0);
}

Value abs_filter(Meter&, Args& args) {
  const Parameters p(args, "abs", {"x"}, 1);
  const Value& value = p.get(0);
  const bool negative =
      value.number() && (value.integer() ? *value.integer() < 0 : std::signbit(*value.number()));
  return negate(value, negative);
}

Value round_filter(Meter&, Args& args) {
  const Parameters p(args, "round", {"value", "precision", "method"}, 1);
  const int64_t precision = p.integer(1, 0);
  const std::string_view method = p.text(2).value_or("common");
  require_defined(p.get(0));
  if (method == "common") return round_number(p.get(0), precision);
  require(method == "ceil" || method == "floor", "round(): method must be common, ceil or floor");
  require(p.get(0).number().has_value(), "'{}' cannot be rounded", type_name(p.get(0)));
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = *p.get(0).number() * scale;
  require(std::isfinite(scaled) && scale > 0, "round(): {} digits are too many", precision);
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

Value format(Meter& meter, Args& args) {
  require(!args.positional.empty(), "format needs a value");
  const Value text = to_string(meter, args.positional[0]);
  args.positional.erase(args.positional.begin());
  require(args.positional.empty() || args.named.empty(),
          "format() takes positional or keyword arguments, not both");
  if (args.named.empty())
    return format_percent(meter, text.string()->text,
                          make_list(meter, std::move(args.positional), List::Form::kTuple));
  std::vector<std::pair<Value, Value>> named;
  for (auto& [name, value] : args.named) named.emplace_back(make_string(meter, name), value);
  return format_percent(meter, text.string()->text, make_dict(meter, std::move(named)));
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
  const auto add = [&](std::string_view line) {
    if (!is_first) out.append("\n");
    const bool indented = is_first ? p.flag(2, false) : p.flag(3, false) || !line.empty();
    if (indented) out.append(margin.text());
    out.append(line);
    is_first = false;
  };
  StringBuilder whole(meter);
  whole.append(text);
  whole.append("\n");  // so that a text that ends in a line's end has an empty last line
  split_lines(whole.text(), /*keep_ends=*/false, add);
  return std::move(out).finish(p.get(0).string()->safe);
}

Value truncate(Meter& meter, Args& args) {
  const Parameters p(args, "truncate", {"s", "length", "killwords", "end", "leeway"}, 1);
  const std::string_view end = p.text(3).value_or("...");
  const int64_t size = p.integer(1, 255), leeway = p[4] ? p.integer(4, 5) : 5;
  const int64_t n_end = count_chars(end);
  require(size >= n_end && leeway >= 0, "truncate(): length or leeway is too small");
  const int64_t n = length(meter, p.get(0));
  if (n <= leeway || n - leeway <= size) return p.get(0);
  const std::string_view text = text_of(p.get(0), "s");
  std::string_view kept = text.substr(0, char_offset(text, size - n_end));
  if (!p.flag(2, false)) kept = kept.substr(0, std::min(kept.rfind(' '), kept.size()));
  StringBuilder out(meter);
  out.append(kept);
  out.append(end);
  return std::move(out).finish();
}

Value word_count(Meter& meter, Args& args) {
  const Parameters p(args, "wordcount", {"s"}, 1);
  const Value text = to_string(meter, p.get(0));
  meter.work(text.string()->text.size());
  int64_t n = 0;
  bool in_word = false;
  for_each_char(text.string()->text, [&](char32_t c, std::string_view) {
    n += is_word(c) && !in_word;
    in_word = is_word(c);
  });
  return n;
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
    {"abs", abs_filter},
    {"capitalize", map_text<capitalize>},
    {"center", center},
    {"d", default_value},
    {"default", default_value},
    {"e", escape},
    {"escape", escape},
    {"float", float_filter},
    {"forceescape", force_escape},
    {"format", format},
    {"indent", indent},
    {"int", int_filter},
    {"lower", map_text<lower>},
    {"replace", replace_filter},
    {"round", round_filter},
    {"safe", safe},
    {"string", string},
    {"title", map_text<title_words>},
    {"tojson", to_json_filter},
    {"trim", trim},
    {"truncate", truncate},
    {"upper", map_text<upper>},
    {"wordcount", word_count},
};

}  // namespace

Function find_text_filter(std::string_view name) { return find_function(kFilters, name); }

Function find_filter(std::string_view name) {
  const Function of_text = find_text_filter(name);
  return of_text != nullptr ? of_text : find_list_filter(name);
}

}  // namespace ei::jinja
