#include <algorithm>
#include <iterator>

#include "ei/jinja/builtins.h"
#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

using Method = Value (*)(Meter&, const Value& self, Args&);
struct NamedMethod {
  std::string_view name;
  Method run;
};

std::string_view text(const Value& self) { return self.string()->text; }

// The stretch of a string that arguments `start` and `end` choose, and its first character's
// position. Nothing when start is behind the end of the string.
struct Window {
  std::string_view text;
  int64_t start;
};
std::optional<Window> window(Meter& meter, std::string_view whole, const Parameters& p, size_t i) {
  meter.work(whole.size());
  const auto given = [&](size_t k) { return p[k] != nullptr && !p[k]->is<None>(); };
  if (!given(i) && !given(i + 1)) return Window{whole, 0};
  const int64_t size = count_chars(whole);
  const auto position = [&](size_t k, int64_t fallback) {
    if (!given(k)) return fallback;
    const int64_t n = p.integer(k, fallback);
    return n < 0 ? std::max<int64_t>(0, n < -size ? 0 : n + size) : n;
  };
  const int64_t start = position(i, 0), end = std::min(position(i + 1, size), size);
  if (start > end) return std::nullopt;
  const size_t from = char_offset(whole, start);
  return Window{whole.substr(from, char_offset(whole.substr(from), end - start)), start};
}

enum class From { kLeft, kRight };

// Position in characters, -1 when it is not there.
template <From kFrom>
int64_t position_of(Meter& meter, const Value& self, const Parameters& p) {
  const auto part = window(meter, text(self), p, 1);
  if (!part) return -1;
  const std::string_view wanted = text_of(p.get(0), "sub");
  const size_t at =
      kFrom == From::kLeft ? find_text(part->text, wanted) : rfind_text(part->text, wanted);
  return at == std::string_view::npos ? -1 : part->start + count_chars(part->text.substr(0, at));
}

template <From kFrom>
Value find(Meter& meter, const Value& self, Args& args) {
  return position_of<kFrom>(meter, self, {args, "find", {"sub", "start", "end"}, 1});
}

template <From kFrom>
Value index(Meter& meter, const Value& self, Args& args) {
  const int64_t at = position_of<kFrom>(meter, self, {args, "index", {"sub", "start", "end"}, 1});
  require(at >= 0, "index(): substring not found");
  return at;
}

Value count(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "count", {"sub", "start", "end"}, 1);
  const auto part = window(meter, text(self), p, 1);
  return part ? count_text(part->text, text_of(p.get(0), "sub")) : int64_t{0};
}

template <From kFrom>
Value has_affix(Meter& meter, const Value& self, Args& args) {
  const char* name = kFrom == From::kLeft ? "startswith" : "endswith";
  const Parameters p(args, name, {"affix", "start", "end"}, 1);
  const auto part = window(meter, text(self), p, 1);
  const auto has = [&](const Value& affix) {
    const std::string_view wanted = text_of(affix, "affix");
    return part &&
           (kFrom == From::kLeft ? part->text.starts_with(wanted) : part->text.ends_with(wanted));
  };
  const List* list = p.get(0).list();
  if (list == nullptr || list->form != List::Form::kTuple) return has(p.get(0));
  return std::any_of(list->items.begin(), list->items.end(), has);
}

template <From kFrom>
Value remove_affix(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "removeprefix/removesuffix", {"affix"}, 1);
  const std::string_view affix = text_of(p.get(0), "affix");
  std::string_view rest = text(self);
  if (kFrom == From::kLeft && rest.starts_with(affix)) rest.remove_prefix(affix.size());
  if (kFrom == From::kRight && rest.ends_with(affix)) rest.remove_suffix(affix.size());
  return make_string(meter, rest, self.string()->safe);
}

template <Side kSide>
Value strip(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "strip", {"chars"}, 0);
  meter.work(text(self).size());
  const auto chars = p.text(0);
  return make_string(meter, chars ? strip(text(self), kSide, *chars) : strip(text(self), kSide),
                     self.string()->safe);
}

template <From kFrom>
Value split_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "split", {"sep", "maxsplit"}, 0);
  const auto separator = p.text(0);
  require(!separator || !separator->empty(), "split(): empty separator");
  meter.work(text(self).size());
  ListBuilder pieces(meter);
  const Emit emit = [&](std::string_view piece) {
    pieces.push(make_string(meter, piece, self.string()->safe));
  };
  const int64_t limit = p.integer(1, -1);
  if (kFrom == From::kLeft) {
    separator ? split(text(self), *separator, limit, emit)
              : split_at_spaces(text(self), limit, emit);
  } else {
    separator ? rsplit(text(self), *separator, limit, emit)
              : rsplit_at_spaces(text(self), limit, emit);
    pieces.reverse();
  }
  return std::move(pieces).finish();
}

Value split_lines_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "splitlines", {"keepends"}, 0);
  ListBuilder lines(meter);
  split_lines(text(self), p.flag(0, false), [&](std::string_view line) {
    lines.push(make_string(meter, line, self.string()->safe));
  });
  return std::move(lines).finish();
}

template <From kFrom>
Value partition(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "partition", {"sep"}, 1);
  const std::string_view whole = text(self), separator = text_of(p.get(0), "sep");
  require(!separator.empty(), "partition(): empty separator");
  meter.work(whole.size());
  const size_t at =
      kFrom == From::kLeft ? find_text(whole, separator) : rfind_text(whole, separator);
  const auto part = [&](std::string_view piece) {
    return make_string(meter, piece, self.string()->safe);
  };
  std::vector<Value> parts;
  if (at != std::string_view::npos)
    parts = {part(whole.substr(0, at)), part(separator), part(whole.substr(at + separator.size()))};
  else if (kFrom == From::kLeft)
    parts = {part(whole), part(""), part("")};
  else
    parts = {part(""), part(""), part(whole)};
  return make_list(meter, std::move(parts), List::Form::kTuple);
}

Value replace_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "replace", {"old", "new", "count"}, 2);
  return replace(meter, *self.string(), text_of(p.get(0), "old"), text_of(p.get(1), "new"),
                 p.integer(2, -1));
}

Value join_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "join", {"iterable"}, 1);
  const Items items = iterate(meter, p.get(0));
  for (const Value& item : items) text_of(item, "an item to join");
  return join(meter, text(self), items);
}

using Mapping = std::string (*)(std::string_view);
template <Mapping kMapping>
Value map_text(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "method", {}, 0);
  meter.work(text(self).size());
  return make_string(meter, kMapping(text(self)), self.string()->safe);
}

// "isalpha" and so on; which one is the text behind "is".
constexpr std::string_view kClasses[] = {"alpha",   "alnum", "ascii", "decimal", "digit",
                                         "numeric", "space", "lower", "upper",   "title"};
template <size_t kClass>
Value is_class(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "method", {}, 0);
  meter.work(text(self).size());
  return has_class(text(self), kClasses[kClass]);
}

// kLeft: the text is at the left.
enum class Align { kLeft, kRight, kCenter, kZeros };
template <Align kAlign>
Value pad(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "padding", {"width", "fillchar"}, 1);
  std::string_view body = text(self);
  const std::string_view fill = kAlign == Align::kZeros ? "0" : p.text(1).value_or(" ");
  require(count_chars(fill) == 1, "the fill character must be exactly one character long");
  const int64_t width = p.integer(0, 0);
  const int64_t n = std::max<int64_t>(0, width - count_chars(body));
  // Python gives the odd one to the left when the width is odd.
  const int64_t n_left = kAlign == Align::kLeft     ? 0
                         : kAlign == Align::kCenter ? n / 2 + (n & width & 1)
                                                    : n;
  StringBuilder out(meter);
  if (kAlign == Align::kZeros && (body.starts_with('-') || body.starts_with('+'))) {
    out.append(body.substr(0, 1));
    body.remove_prefix(1);
  }
  for (int64_t i = 0; i < n_left; ++i) out.append(fill);
  out.append(body);
  for (int64_t i = n_left; i < n; ++i) out.append(fill);
  return std::move(out).finish(self.string()->safe);
}

// Replacement fields "{}", "{0}", "{name}", each with an optional "!r" or "!s".
Value format(Meter& meter, const Value& self, Args& args) {
  StringBuilder out(meter);
  std::string_view rest = text(self);
  size_t n_automatic = 0;
  while (!rest.empty()) {
    const size_t brace = std::min(rest.find_first_of("{}"), rest.size());
    out.append(rest.substr(0, brace));
    rest.remove_prefix(brace);
    if (rest.starts_with("{{") || rest.starts_with("}}")) {
      out.append(rest.substr(0, 1));
      rest.remove_prefix(2);
      continue;
    }
    if (rest.empty()) break;
    const size_t end = rest.find('}');
    require(rest[0] == '{' && end != rest.npos, "format(): a single brace in the format");
    std::string_view field = rest.substr(1, end - 1);
    rest.remove_prefix(end + 1);
    const bool repr = field.ends_with("!r");
    if (repr || field.ends_with("!s")) field.remove_suffix(2);
    require(field.find_first_of(".[:!{") == field.npos,
            "format(): only fields without attributes and formats are supported, not '{}'", field);
    const auto number =
        field.empty() ? static_cast<int64_t>(n_automatic++) : parse_integer(field, 10).value_or(-1);
    const Value* value = nullptr;
    if (number >= 0 && static_cast<size_t>(number) < args.positional.size())
      value = &args.positional[static_cast<size_t>(number)];
    for (const auto& [name, named] : args.named)
      if (name == field) value = &named;
    require(value != nullptr, "format(): no argument for the field '{}'", field);
    repr ? print_repr(meter, *value, out) : print(meter, *value, out);
  }
  return std::move(out).finish(self.string()->safe);
}

constexpr NamedMethod kStringMethods[] = {
    {"capitalize", map_text<capitalize>},
    {"center", pad<Align::kCenter>},
    {"count", count},
    {"endswith", has_affix<From::kRight>},
    {"find", find<From::kLeft>},
    {"format", format},
    {"index", index<From::kLeft>},
    {"isalnum", is_class<1>},
    {"isalpha", is_class<0>},
    {"isascii", is_class<2>},
    {"isdecimal", is_class<3>},
    {"isdigit", is_class<4>},
    {"islower", is_class<7>},
    {"isnumeric", is_class<5>},
    {"isspace", is_class<6>},
    {"istitle", is_class<9>},
    {"isupper", is_class<8>},
    {"join", join_method},
    {"ljust", pad<Align::kLeft>},
    {"lower", map_text<lower>},
    {"lstrip", strip<Side::kLeft>},
    {"partition", partition<From::kLeft>},
    {"removeprefix", remove_affix<From::kLeft>},
    {"removesuffix", remove_affix<From::kRight>},
    {"replace", replace_method},
    {"rfind", find<From::kRight>},
    {"rindex", index<From::kRight>},
    {"rjust", pad<Align::kRight>},
    {"rpartition", partition<From::kRight>},
    {"rsplit", split_method<From::kRight>},
    {"rstrip", strip<Side::kRight>},
    {"split", split_method<From::kLeft>},
    {"splitlines", split_lines_method},
    {"startswith", has_affix<From::kLeft>},
    {"strip", strip<Side::kBoth>},
    {"swapcase", map_text<swap_case>},
    {"title", map_text<title>},
    {"upper", map_text<upper>},
    {"zfill", pad<Align::kZeros>},
};

Value dict_get(Meter&, const Value& self, Args& args) {
  const Parameters p(args, "get", {"key", "default"}, 1);
  const Value* found = self.dict()->find(p.get(0));
  return found != nullptr ? *found : p[1] ? *p[1] : Value();
}

Value dict_keys(Meter& meter, const Value& self, Args&) {
  ListBuilder keys(meter);
  for (const auto& item : self.dict()->items) keys.push(item.first);
  return std::move(keys).finish(List::Form::kView, "dict_keys");
}

Value dict_values(Meter& meter, const Value& self, Args&) {
  ListBuilder values(meter);
  for (const auto& item : self.dict()->items) values.push(item.second);
  return std::move(values).finish(List::Form::kView, "dict_values");
}

Value dict_items(Meter& meter, const Value& self, Args&) {
  ListBuilder items(meter);
  for (const auto& [key, value] : self.dict()->items)
    items.push(make_list(meter, {key, value}, List::Form::kTuple));
  return std::move(items).finish(List::Form::kView, "dict_items");
}

Value copy(Meter&, const Value& self, Args&) { return self; }

constexpr NamedMethod kDictMethods[] = {{"copy", copy},
                                        {"get", dict_get},
                                        {"items", dict_items},
                                        {"keys", dict_keys},
                                        {"values", dict_values}};

Value list_count(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "count", {"value"}, 1);
  const auto& items = self.list()->items;
  return std::count_if(items.begin(), items.end(),
                       [&](const Value& item) { return equal(meter, item, p.get(0)); });
}

Value list_index(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "index", {"value"}, 1);
  const auto& items = self.list()->items;
  const auto at = std::find_if(items.begin(), items.end(),
                               [&](const Value& item) { return equal(meter, item, p.get(0)); });
  require(at != items.end(), "index(): the value is not in the list");
  return at - items.begin();
}

constexpr NamedMethod kListMethods[] = {
    {"copy", copy}, {"count", list_count}, {"index", list_index}};

template <size_t kSize>
Method lookup(const NamedMethod (&methods)[kSize], std::string_view name) {
  const auto at = std::find_if(std::begin(methods), std::end(methods),
                               [&](const NamedMethod& method) { return method.name == name; });
  return at != std::end(methods) ? at->run : nullptr;
}

}  // namespace

std::optional<Value> bind_method(Meter& meter, const Value& value, std::string_view name) {
  const Method method = value.string() != nullptr ? lookup(kStringMethods, name)
                        : value.dict() != nullptr ? lookup(kDictMethods, name)
                        : value.list() != nullptr && value.list()->form < List::Form::kView
                            ? lookup(kListMethods, name)
                            : nullptr;
  if (method == nullptr) return std::nullopt;
  return make_function(meter,
                       [value, method](Meter& m, Args& args) { return method(m, value, args); });
}

bool changes_value(const Value& value, std::string_view name) {
  constexpr std::string_view kOfDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  constexpr std::string_view kOfList[] = {"append", "clear", "pop",    "reverse",
                                          "insert", "sort",  "extend", "remove"};
  const auto has = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  if (value.dict() != nullptr) return has(kOfDict);
  return value.list() != nullptr && value.list()->form == List::Form::kList && has(kOfList);
}

}  // namespace ei::jinja
