#include <algorithm>
#include <functional>
#include <numeric>

#include "ei/jinja/filters.h"
#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

// Items that Python computes as they are asked for. They are computed at once here: the difference
// shows only in errors of items that nobody takes.
Value as_iterator(ListBuilder&& items) {
  return std::move(items).finish(List::Form::kIterator, "generator");
}

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
    step(has_class(part, "decimal") ? Value(*parse_integer(part, 10)) : make_string(meter, part));
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
  const Value& attribute = p[3] ? *p[3] : kNone;
  std::vector<Keyed> items;
  for (const Value& item : iterate(meter, p.get(0))) {
    // "a,b" sorts by a, then by b.
    ListBuilder key(meter);
    const auto add = [&](const Value& part) {
      key.push(sort_key(meter, find_path(meter, item, part), p.flag(2, false)));
    };
    if (attribute.string() != nullptr)
      split(attribute.string()->text, ",", -1,
            [&](std::string_view part) { add(make_string(meter, part)); });
    else
      add(attribute);
    items.push_back({std::move(key).finish(), item});
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
  // A dict from key to position keeps the last one: going backwards, that is the first.
  std::vector<std::pair<Value, Value>> positions;
  for (size_t i = list.size(); i-- > 0;) {
    const Value part = find_path(meter, list[i], p[2] ? *p[2] : kNone);
    positions.emplace_back(sort_key(meter, part, p.flag(1, false)), static_cast<int64_t>(i));
  }
  const Value dict = make_dict(meter, std::move(positions));
  std::vector<int64_t> order;
  for (const auto& [key, i] : dict.dict()->items) order.push_back(*i.integer());
  std::sort(order.begin(), order.end());
  ListBuilder items(meter);
  for (const int64_t i : order) items.push(list[static_cast<size_t>(i)]);
  return as_iterator(std::move(items));
}

template <bool kMax>
Value extreme(Meter& meter, Args& args) {
  const Parameters p(args, kMax ? "max" : "min", {"value", "case_sensitive", "attribute"}, 1);
  const Items list = iterate(meter, p.get(0));
  std::optional<Keyed> best;
  for (const Value& item : list) {
    const Value part = find_path(meter, item, p[2] ? *p[2] : kNone);
    const Value key = sort_key(meter, part, p.flag(1, false));
    if (!best || (kMax ? less(meter, best->key, key) : less(meter, key, best->key)))
      best = {key, item};
  }
  return best ? best->item : make_undefined(meter, "No aggregated item, sequence was empty.");
}

Value sum(Meter& meter, Args& args) {
  const Parameters p(args, "sum", {"iterable", "attribute", "start"}, 1);
  Value total = p[2] ? *p[2] : Value(int64_t{0});
  require(total.string() == nullptr, "sum() can't sum strings");
  for (const Value& item : iterate(meter, p.get(0)))
    total = calculate(meter, Operator::kAdd, total, find_path(meter, item, p[1] ? *p[1] : kNone));
  return total;
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
  if (const String* string = p.get(0).string())
    return make_string(meter, reverse_text(string->text), string->safe);
  ListBuilder items(meter);
  for (const Value& item : iterate(meter, p.get(0))) items.push(item);
  items.reverse();
  const bool is_iterator = p.get(0).list() && p.get(0).list()->form == List::Form::kIterator;
  return is_iterator ? std::move(items).finish() : as_iterator(std::move(items));
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

Value batch(Meter& meter, Args& args) {
  const Parameters p(args, "batch", {"value", "linecount", "fill_with"}, 2);
  const int64_t size = p.integer(1, 0);
  require(size > 0, "batch(): linecount is {}, expected at least 1", size);
  const Items list = iterate(meter, p.get(0));
  const auto n_items = static_cast<int64_t>(list.size());
  ListBuilder batches(meter);
  for (int64_t begin = 0; begin < n_items; begin += std::min(size, n_items - begin)) {
    ListBuilder row(meter);
    for (int64_t i = 0; i < size && begin + i < n_items; ++i)
      row.push(list[static_cast<size_t>(begin + i)]);
    while (p[2] != nullptr && !p[2]->is<None>() && static_cast<int64_t>(row.size()) < size)
      row.push(*p[2]);
    batches.push(std::move(row).finish());
  }
  return as_iterator(std::move(batches));
}

Value slice_filter(Meter& meter, Args& args) {
  const Parameters p(args, "slice", {"value", "slices", "fill_with"}, 2);
  const int64_t n_slices = p.integer(1, 0);
  require(n_slices > 0, "slice(): slices is {}, expected at least 1", n_slices);
  const Items list = iterate(meter, p.get(0));
  const auto n_items = static_cast<int64_t>(list.size());
  const int64_t size = n_items / n_slices, n_longer = n_items % n_slices;
  ListBuilder slices(meter);
  auto next = list.begin();
  for (int64_t k = 0; k < n_slices; ++k) {
    ListBuilder row(meter);
    for (int64_t i = 0; i < size + (k < n_longer); ++i) row.push(*next++);
    if (p[2] != nullptr && !p[2]->is<None>() && k >= n_longer) row.push(*p[2]);
    slices.push(std::move(row).finish());
  }
  return as_iterator(std::move(slices));
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
    {"batch", batch},
    {"count", length_filter},
    {"dictsort", dict_sort},
    {"first", first},
    {"items", items_filter},
    {"join", join_filter},
    {"last", last},
    {"length", length_filter},
    {"list", list_filter},
    {"map", map},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"reverse", reverse},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"slice", slice_filter},
    {"sort", sort},
    {"sum", sum},
    {"unique", unique},
};

}  // namespace

Function find_list_filter(std::string_view name) { return find_function(kListFilters, name); }

}  // namespace ei::jinja
