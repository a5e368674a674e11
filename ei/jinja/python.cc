#include "ei/jinja/python.h"

#include <algorithm>

#include "ei/jinja/builtins.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

Value missing(Meter& meter, const Value& value, const Value& key) {
  std::string type(type_name(value));
  if (value.is<None>())
    type = "None";
  else
    type = (value.object() ? "jinja2 " + type : type) + " object";
  std::string shown;
  if (const String* name = key.string()) {
    shown = name->text.substr(0, char_offset(name->text, 60));
    return make_undefined(meter, fmt::format("'{}' has no attribute {}", type, quote(shown)));
  }
  if (const auto number = key.number())
    shown = key.integer() ? fmt::format("{}", *key.integer()) : format_float(*number);
  else
    shown = fmt::format("of type '{}'", type_name(key));
  return make_undefined(meter, fmt::format("{} has no element {}", type, shown));
}

// The item at a position that may count from the end, or null.
const Value* item_at(const List& list, int64_t i) {
  const auto size = static_cast<int64_t>(list.items.size());
  if (i < 0) i += size;
  return i >= 0 && i < size ? &list.items[static_cast<size_t>(i)] : nullptr;
}

std::optional<Value> find_item(Meter& meter, const Value& value, const Value& key) {
  if (const String* string = value.string(); string != nullptr && key.integer()) {
    meter.work(string->text.size());
    const int64_t i = *key.integer();
    const int64_t at = i < 0 ? i + count_chars(string->text) : i;
    const size_t begin = char_offset(string->text, at);
    if (at < 0 || begin == string->text.size()) return std::nullopt;
    const std::string_view rest = std::string_view(string->text).substr(begin);
    return make_string(meter, rest.substr(0, decode_utf8(rest).n_bytes));
  }
  const List* list = value.list();
  if (list != nullptr && list->form != List::Form::kIterator && key.integer()) {
    const Value* item = item_at(*list, *key.integer());
    return item != nullptr ? std::optional(*item) : std::nullopt;
  }
  if (const Dict* dict = value.dict()) {
    const Value* item = dict->find(key);
    return item != nullptr ? std::optional(*item) : std::nullopt;
  }
  return std::nullopt;
}

std::optional<Value> find_attribute(Meter& meter, const Value& value, std::string_view name) {
  if (Object* object = value.object()) return object->attribute(meter, name);
  if (changes_value(value, name))
    return make_undefined(meter, fmt::format("access to attribute '{}' of '{}' object is unsafe: "
                                             "templates may not change values",
                                             name, type_name(value)));
  return bind_method(meter, value, name);
}

}  // namespace

std::string_view text_of(const Value& value, std::string_view what) {
  require_defined(value);
  require(value.string() != nullptr, "{} must be a str, not '{}'", what, type_name(value));
  return value.string()->text;
}

int64_t integer_of(const Value& value, std::string_view what) {
  require_defined(value);
  require(value.integer().has_value(), "{} must be an int, not '{}'", what, type_name(value));
  return *value.integer();
}

bool truthy(const Value& value) {
  struct Truth {
    bool operator()(None) const { return false; }
    bool operator()(const Undefined&) const { return false; }
    bool operator()(bool b) const { return b; }
    bool operator()(int64_t i) const { return i != 0; }
    bool operator()(double d) const { return d != 0; }
    bool operator()(const StringPtr& string) const { return !string->text.empty(); }
    bool operator()(const ListPtr& list) const {
      return list->form == List::Form::kIterator || !list->items.empty();
    }
    bool operator()(const DictPtr& dict) const { return !dict->items.empty(); }
    bool operator()(const ObjectPtr&) const { return true; }
  };
  return std::visit(Truth{}, value.data);
}

bool same(const Value& a, const Value& b) {
  if (a.data.index() != b.data.index()) return false;
  if (a.is<None>()) return true;
  if (a.is<bool>()) return *a.as<bool>() == *b.as<bool>();
  if (a.is<int64_t>()) return *a.as<int64_t>() == *b.as<int64_t>();
  return (a.string() && a.string() == b.string()) || (a.list() && a.list() == b.list()) ||
         (a.dict() && a.dict() == b.dict()) || (a.object() && a.object() == b.object());
}

bool equal(Meter& meter, const Value& a, const Value& b) {
  meter.step();
  if (same(a, b)) return true;
  if (a.number() && b.number())
    return a.integer() && b.integer() ? a.integer() == b.integer() : a.number() == b.number();
  if (a.data.index() != b.data.index()) return false;
  if (a.is<Undefined>()) return true;
  if (const String* x = a.string()) {
    const String* y = b.string();
    if (x->text.size() != y->text.size()) return false;
    meter.work(x->text.size());
    return x->text == y->text;
  }
  if (const List* x = a.list()) {
    const List* y = b.list();
    if (x->form != y->form || x->form == List::Form::kIterator) return false;
    return std::equal(x->items.begin(), x->items.end(), y->items.begin(), y->items.end(),
                      [&](const Value& i, const Value& j) { return equal(meter, i, j); });
  }
  if (const Dict* x = a.dict()) {
    const Dict* y = b.dict();
    return x->items.size() == y->items.size() &&
           std::all_of(x->items.begin(), x->items.end(), [&](const auto& item) {
             const Value* other = y->find(item.first);
             return other != nullptr && equal(meter, item.second, *other);
           });
  }
  return false;
}

bool less(Meter& meter, const Value& a, const Value& b) {
  meter.step();
  require_defined(a);
  require_defined(b);
  if (a.integer() && b.integer()) return *a.integer() < *b.integer();
  if (a.number() && b.number()) return *a.number() < *b.number();
  if (a.string() && b.string()) {
    meter.work(std::min(a.string()->text.size(), b.string()->text.size()));
    return a.string()->text < b.string()->text;  // bytes of UTF-8 are in order of code points
  }
  const List *x = a.list(), *y = b.list();
  if (x != nullptr && y != nullptr && x->form == y->form && x->form != List::Form::kIterator) {
    const size_t n = std::min(x->items.size(), y->items.size());
    for (size_t i = 0; i < n; ++i)
      if (!equal(meter, x->items[i], y->items[i])) return less(meter, x->items[i], y->items[i]);
    return x->items.size() < y->items.size();
  }
  fail("'<' not supported between instances of '{}' and '{}'", type_name(a), type_name(b));
}

bool compare(Meter& meter, Comparison how, const Value& a, const Value& b) {
  switch (how) {
    case Comparison::kEqual:
      return equal(meter, a, b);
    case Comparison::kNotEqual:
      return !equal(meter, a, b);
    case Comparison::kLess:
      return less(meter, a, b);
    case Comparison::kLessEqual:
      return less(meter, a, b) || equal(meter, a, b);
    case Comparison::kGreater:
      return less(meter, b, a);
    case Comparison::kGreaterEqual:
      return less(meter, b, a) || equal(meter, a, b);
    case Comparison::kIn:
      return contains(meter, b, a);
    case Comparison::kNotIn:
      return !contains(meter, b, a);
  }
  return false;
}

bool contains(Meter& meter, const Value& container, const Value& item) {
  if (const String* string = container.string()) {
    const std::string_view wanted = text_of(item, "what is looked for in a string");
    meter.work(string->text.size());
    return find_text(string->text, wanted) != wanted.npos;
  }
  if (const Dict* dict = container.dict()) return dict->find(item) != nullptr;
  const Items list = iterate(meter, container);
  return std::any_of(list.begin(), list.end(),
                     [&](const Value& other) { return equal(meter, item, other); });
}

int64_t length(Meter& meter, const Value& value) {
  if (value.is<Undefined>()) return 0;
  if (const String* string = value.string()) {
    meter.work(string->text.size());
    return count_chars(string->text);
  }
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->items.size());
  if (const List* list = value.list(); list != nullptr && list->form != List::Form::kIterator)
    return static_cast<int64_t>(list->items.size());
  fail("object of type '{}' has no len()", type_name(value));
}

Items iterate(Meter& meter, const Value& value) {
  if (const ListPtr* list = value.as<ListPtr>()) {
    if ((*list)->form != List::Form::kIterator) return {*list};
    const size_t begin = std::exchange((*list)->n_used, (*list)->items.size());
    if (begin == 0) return {*list};
    ListBuilder rest(meter);
    for (size_t i = begin; i < (*list)->items.size(); ++i) rest.push((*list)->items[i]);
    return {*std::move(rest).finish().as<ListPtr>()};
  }
  ListBuilder items(meter);
  if (const String* string = value.string())
    for_each_char(string->text,
                  [&](char32_t, std::string_view bytes) { items.push(make_string(meter, bytes)); });
  else if (const Dict* dict = value.dict())
    for (const auto& item : dict->items) items.push(item.first);
  else
    require(value.is<Undefined>(), "'{}' object is not iterable", type_name(value));
  return {*std::move(items).finish().as<ListPtr>()};
}

Value get_item(Meter& meter, const Value& value, const Value& key) {
  require_defined(value);
  if (auto item = find_item(meter, value, key)) return *std::move(item);
  if (const String* name = key.string())
    if (auto attribute = find_attribute(meter, value, name->text)) return *std::move(attribute);
  return missing(meter, value, key);
}

Value get_attribute(Meter& meter, const Value& value, std::string_view name) {
  require_defined(value);
  if (auto attribute = find_attribute(meter, value, name)) return *std::move(attribute);
  if (const Dict* dict = value.dict())
    if (const Value* item = dict->find(name)) return *item;
  return missing(meter, value, make_string(meter, name));
}

Value slice(Meter& meter, const Value& value, const Value& begin, const Value& end,
            const Value& step) {
  require_defined(value);
  const List* list = value.list();
  const String* string = value.string();
  require(string != nullptr || (list != nullptr && list->form != List::Form::kIterator),
          "'{}' object cannot be sliced", type_name(value));
  for (const Value* part : {&begin, &end, &step})
    require(part->is<None>() || part->integer(), "slice indices must be integers, not '{}'",
            type_name(*part));

  const int64_t size = length(meter, value);
  const int64_t stride = step.integer().value_or(1);
  require(stride != 0, "slice step cannot be zero");
  const int64_t lowest = stride > 0 ? 0 : -1, highest = stride > 0 ? size : size - 1;
  const auto clamp = [&](const Value& part, int64_t fallback) {
    if (!part.integer()) return fallback;
    int64_t i = *part.integer();
    if (i < 0) i = i < -size ? lowest : i + size;
    return std::clamp(i, lowest, std::max(lowest, highest));
  };
  const int64_t from = clamp(begin, stride > 0 ? lowest : highest);
  const int64_t to = clamp(end, stride > 0 ? highest : lowest);
  const int64_t span = stride > 0 ? to - from : from - to;
  // Unsigned, for the most negative stride.
  const uint64_t pace =
      stride > 0 ? static_cast<uint64_t>(stride) : uint64_t{0} - static_cast<uint64_t>(stride);
  const int64_t n =
      span <= 0 ? 0 : static_cast<int64_t>((static_cast<uint64_t>(span) - 1) / pace) + 1;

  if (list != nullptr) {
    ListBuilder part(meter);
    for (int64_t k = 0; k < n; ++k) part.push(list->items[static_cast<size_t>(from + k * stride)]);
    return std::move(part).finish(list->form == List::Form::kTuple ? List::Form::kTuple
                                                                   : List::Form::kList);
  }
  const std::string_view text = string->text;
  StringBuilder part(meter);
  if (stride == 1) {
    const size_t first = char_offset(text, from);
    part.append(text.substr(first, n == 0 ? 0 : char_offset(text.substr(first), n)));
  } else {
    const Items chars = iterate(meter, value);
    for (int64_t k = 0; k < n; ++k)
      part.append(chars[static_cast<size_t>(from + k * stride)].string()->text);
  }
  return std::move(part).finish();
}

}  // namespace ei::jinja
