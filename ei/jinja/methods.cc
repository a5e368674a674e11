#include <algorithm>
#include <iterator>

#include "ei/jinja/builtins.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

using Method = Value (*)(Meter&, const Value& self, Args&);
struct NamedMethod {
  std::string_view name;
  Method run;
};

std::string_view text(const Value& self) { return self.string()->text; }

Value find(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "find", {"sub"}, 1);
  meter.work(text(self).size());
  const size_t at = find_text(text(self), text_of(p.get(0), "sub"));
  return at == std::string_view::npos ? int64_t{-1} : count_chars(text(self).substr(0, at));
}

Value count(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "count", {"sub"}, 1);
  meter.work(text(self).size());
  int64_t n = -1;
  const std::string_view wanted = text_of(p.get(0), "sub");
  require(!wanted.empty(), "count(): empty text");
  split(text(self), wanted, -1, [&](std::string_view) { ++n; });
  return n;
}

enum class From { kLeft, kRight };

template <From kFrom>
bool has_affix(std::string_view whole, std::string_view affix) {
  return kFrom == From::kLeft ? whole.starts_with(affix) : whole.ends_with(affix);
}

template <From kFrom>
Value has_affix(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, kFrom == From::kLeft ? "startswith" : "endswith", {"affix"}, 1);
  meter.work(text(self).size());
  const auto has = [&](const Value& affix) {
    return has_affix<kFrom>(text(self), text_of(affix, "affix"));
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
  if (!has_affix<kFrom>(rest, affix)) return self;
  kFrom == From::kLeft ? rest.remove_prefix(affix.size()) : rest.remove_suffix(affix.size());
  return make_string(meter, rest);
}

template <Side kSide>
Value strip_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "strip", {"chars"}, 0);
  meter.work(text(self).size());
  const auto chars = p.text(0);
  return make_string(meter,
                     chars ? ei::strip(text(self), kSide, *chars) : ei::strip(text(self), kSide));
}

Value split_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "split", {"sep", "maxsplit"}, 0);
  const auto separator = p.text(0);
  require(!separator || !separator->empty(), "split(): empty separator");
  meter.work(text(self).size());
  ListBuilder pieces(meter);
  const Emit emit = [&](std::string_view piece) { pieces.push(make_string(meter, piece)); };
  const int64_t limit = p.integer(1, -1);
  separator ? split(text(self), *separator, limit, emit) : split_at_spaces(text(self), limit, emit);
  return std::move(pieces).finish();
}

Value replace_method(Meter& meter, const Value& self, Args& args) {
  const Parameters p(args, "replace", {"old", "new", "count"}, 2);
  return replace(meter, text(self), text_of(p.get(0), "old"), text_of(p.get(1), "new"),
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
  return make_string(meter, kMapping(text(self)));
}

constexpr NamedMethod kStringMethods[] = {
    {"capitalize", map_text<capitalize>},
    {"count", count},
    {"endswith", has_affix<From::kRight>},
    {"find", find},
    {"join", join_method},
    {"lower", map_text<lower>},
    {"lstrip", strip_method<Side::kLeft>},
    {"removeprefix", remove_affix<From::kLeft>},
    {"removesuffix", remove_affix<From::kRight>},
    {"replace", replace_method},
    {"rstrip", strip_method<Side::kRight>},
    {"split", split_method},
    {"startswith", has_affix<From::kLeft>},
    {"strip", strip_method<Side::kBoth>},
    {"title", map_text<title>},
    {"upper", map_text<upper>},
};

Value dict_get(Meter&, const Value& self, Args& args) {
  const Parameters p(args, "get", {"key", "default"}, 1);
  const Value* found = self.dict()->find(p.get(0));
  return found != nullptr ? *found : p[1] ? *p[1] : Value();
}

Value dict_keys(Meter& meter, const Value& self, Args&) {
  ListBuilder keys(meter);
  for (const auto& item : self.dict()->items) keys.push(item.first);
  return std::move(keys).finish();
}

Value dict_values(Meter& meter, const Value& self, Args&) {
  ListBuilder values(meter);
  for (const auto& item : self.dict()->items) values.push(item.second);
  return std::move(values).finish();
}

Value dict_items(Meter& meter, const Value& self, Args&) {
  ListBuilder items(meter);
  for (const auto& [key, value] : self.dict()->items)
    items.push(make_list(meter, {key, value}, List::Form::kTuple));
  return std::move(items).finish();
}

constexpr NamedMethod kDictMethods[] = {
    {"get", dict_get}, {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}};

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
