#include <algorithm>

#include "ei/base/utf8.h"
#include "ei/jinja/builtins.h"

namespace ei::jinja {
namespace {

// Items that Python computes as they are asked for. They are computed at once here: the difference
// shows only in errors of items that nobody takes.
Value as_iterator(ListBuilder&& items) { return std::move(items).finish(List::Form::kIterator); }

// item.a.0.b for an attribute written "a.0.b".
Value find_path(Meter& meter, Value item, const Value& attribute, const Value* fallback = nullptr) {
  const auto step = [&](const Value& part) {
    item = get_item(meter, item, part);
    if (fallback != nullptr && !fallback->is<None>() && item.is<Undefined>()) item = *fallback;
  };
  if (attribute.is<None>()) return item;
  if (attribute.string() == nullptr) {
    step(attribute);
    return item;
  }
  split(attribute.string()->text, ".", -1, [&](std::string_view part) {
    const auto index = parse_integer(part);
    step(index ? Value(*index) : make_string(meter, part));
  });
  return item;
}

// What an item is compared by: without case, unless that is asked for.
Value sort_key(Meter& meter, const Value& item, bool case_sensitive) {
  if (case_sensitive || item.string() == nullptr) return item;
  meter.work(item.string()->text.size());
  return make_string(meter, lower(item.string()->text));
}

const Value kNone;

struct Keyed {
  Value key, item;
};

Value sort_by_key(Meter& meter, std::vector<Keyed> items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? less(meter, b.key, a.key) : less(meter, a.key, b.key);
  });
  ListBuilder sorted(meter);
  for (Keyed& item : items) sorted.push(std::move(item.item));
  return std::move(sorted).finish();
}

Value sort(Meter& meter, Args& args) {
  const Parameters p(args, "sort", {"value", "reverse", "case_sensitive", "attribute"}, 1);
  std::vector<Keyed> items;
  for (const Value& item : iterate(meter, p.get(0))) {
    const Value part = find_path(meter, item, p[3] ? *p[3] : kNone);
    // In a list, as in Jinja: undefined keys are equal there.
    items.push_back({make_list(meter, {sort_key(meter, part, p.flag(2, false))}), item});
  }
  return sort_by_key(meter, std::move(items), p.flag(1, false));
}

Value dict_sort(Meter& meter, Args& args) {
  const Parameters p(args, "dictsort", {"value", "case_sensitive", "by", "reverse"}, 1);
  require_defined(p.get(0));
  require(p.get(0).dict() != nullptr, "dictsort() needs a dict, not '{}'", type_name(p.get(0)));
  const std::string_view by = p.text(2).value_or("key");
  require(by == "key" || by == "value", "dictsort(): by must be \"key\" or \"value\"");
  std::vector<Keyed> items;
  for (const auto& [key, value] : p.get(0).dict()->items)
    items.push_back({sort_key(meter, by == "key" ? key : value, p.flag(1, false)),
                     make_list(meter, {key, value}, List::Form::kTuple)});
  return sort_by_key(meter, std::move(items), p.flag(3, false));
}

Value unique(Meter& meter, Args& args) {
  const Parameters p(args, "unique", {"value", "case_sensitive", "attribute"}, 1);
  const Items list = iterate(meter, p.get(0));
  std::vector<std::pair<Value, Value>> first;  // of each key, going backwards
  for (size_t i = list.size(); i-- > 0;) {
    const Value part = find_path(meter, list[i], p[2] ? *p[2] : kNone);
    first.emplace_back(sort_key(meter, part, p.flag(1, false)), static_cast<int64_t>(i));
  }
  const Value position = make_dict(meter, std::move(first));
  std::vector<bool> wanted(list.size());
  for (const auto& [key, i] : position.dict()->items)
    wanted[static_cast<size_t>(*i.integer())] = true;
  ListBuilder items(meter);
  for (size_t i = 0; i < list.size(); ++i)
    if (wanted[i]) items.push(list[i]);
  return as_iterator(std::move(items));
}

Value length_filter(Meter& meter, Args& args) {
  const Parameters p(args, "length", {"value"}, 1);
  return length(meter, p.get(0));
}

Value list_filter(Meter& meter, Args& args) {
  const Parameters p(args, "list", {"value"}, 1);
  const Items items = iterate(meter, p.get(0));
  return make_list(meter, {items.begin(), items.end()});
}

Value first(Meter& meter, Args& args) {
  const Parameters p(args, "first", {"seq"}, 1);
  const List* list = p.get(0).list();
  if (list != nullptr && list->form == List::Form::kIterator) {
    if (list->n_used < list->items.size()) return list->items[list->n_used++];
    return make_undefined(meter, "No first item, sequence was empty.");
  }
  const Items items = iterate(meter, p.get(0));
  return !items.empty() ? items[0] : make_undefined(meter, "No first item, sequence was empty.");
}

Value last(Meter& meter, Args& args) {
  const Parameters p(args, "last", {"seq"}, 1);
  const List* list = p.get(0).list();
  require(list == nullptr || list->form != List::Form::kIterator,
          "'{}' object is not reversible: apply |list first", type_name(p.get(0)));
  const Items items = iterate(meter, p.get(0));
  return !items.empty() ? items[items.size() - 1]
                        : make_undefined(meter, "No last item, sequence was empty.");
}

Value reverse(Meter& meter, Args& args) {
  const Parameters p(args, "reverse", {"value"}, 1);
  ListBuilder items(meter);
  for (const Value& item : iterate(meter, p.get(0))) items.push(item);
  items.reverse();
  Value reversed = as_iterator(std::move(items));
  return p.get(0).string() ? join(meter, "", iterate(meter, reversed)) : reversed;
}

Value items_filter(Meter& meter, Args& args) {
  const Parameters p(args, "items", {"value"}, 1);
  ListBuilder items(meter);
  if (const Dict* dict = p.get(0).dict())
    for (const auto& [key, value] : dict->items)
      items.push(make_list(meter, {key, value}, List::Form::kTuple));
  else
    require(p.get(0).is<Undefined>(), "Can only get item pairs from a mapping, not '{}'",
            type_name(p.get(0)));
  return as_iterator(std::move(items));
}

Value join_filter(Meter& meter, Args& args) {
  const Parameters p(args, "join", {"value", "d", "attribute"}, 1);
  const Value separator = p[1] ? to_string(meter, *p[1]) : make_string(meter, "");
  ListBuilder items(meter);
  for (const Value& item : iterate(meter, p.get(0)))
    items.push(find_path(meter, item, p[2] ? *p[2] : kNone));
  return join(meter, separator.string()->text, iterate(meter, std::move(items).finish()));
}

// The arguments behind the first `n`, with `item` in front: those of a filter or test by name.
Args forward(const Args& args, size_t n, const Value& item) {
  Args rest;
  rest.positional.push_back(item);
  rest.positional.insert(rest.positional.end(), args.positional.begin() + static_cast<ptrdiff_t>(n),
                         args.positional.end());
  rest.named = args.named;
  return rest;
}

Value map(Meter& meter, Args& args) {
  require(!args.positional.empty(), "map needs a value");
  ListBuilder items(meter);
  const Value value = args.positional[0];
  if (!truthy(value)) return as_iterator(std::move(items));
  if (args.positional.size() == 1) {
    const Parameters p(args, "map", {"value", "attribute", "default"}, 2);
    for (const Value& item : iterate(meter, value))
      items.push(find_path(meter, item, p.get(1), p[2]));
  } else {
    const std::string_view name = text_of(args.positional[1], "the filter's name");
    const Function filter = find_filter(name);
    require(filter != nullptr, "No filter named '{}'.", name);
    for (const Value& item : iterate(meter, value)) {
      meter.step();
      Args forwarded = forward(args, 2, item);
      items.push(filter(meter, forwarded));
    }
  }
  return as_iterator(std::move(items));
}

template <bool kWanted, bool kOfAttribute>
Value select(Meter& meter, Args& args) {
  constexpr size_t kTestAt = kOfAttribute ? 2 : 1;
  require(args.positional.size() >= kTestAt,
          "select and reject need a value and, for an "
          "attribute, its name");
  ListBuilder items(meter);
  if (!truthy(args.positional[0])) return as_iterator(std::move(items));
  Function test = nullptr;
  if (args.positional.size() > kTestAt) {
    const std::string_view name = text_of(args.positional[kTestAt], "the test's name");
    test = find_test(name);
    require(test != nullptr, "No test named '{}'.", name);
  }
  for (const Value& item : iterate(meter, args.positional[0])) {
    meter.step();
    Value subject = kOfAttribute ? find_path(meter, item, args.positional[1]) : item;
    if (test != nullptr) {
      Args forwarded = forward(args, kTestAt + 1, subject);
      subject = test(meter, forwarded);
    }
    if (truthy(subject) == kWanted) items.push(item);
  }
  return as_iterator(std::move(items));
}

constexpr NamedFunction kListFilters[] = {
    {"count", length_filter},
    {"dictsort", dict_sort},
    {"first", first},
    {"items", items_filter},
    {"join", join_filter},
    {"last", last},
    {"length", length_filter},
    {"list", list_filter},
    {"map", map},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"reverse", reverse},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"sort", sort},
    {"unique", unique},
};

}  // namespace

Function find_list_filter(std::string_view name) { return find_function(kListFilters, name); }

}  // namespace ei::jinja
