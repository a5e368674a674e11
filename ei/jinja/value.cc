#include "ei/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <compare>
#include <nlohmann/json.hpp>
#include <numeric>

#include "ei/base/utf8.h"

namespace ei::jinja {
namespace {

constexpr int kMaxValueDepth = 100;  // lists in lists: printing and comparing recurse this far
constexpr size_t kBlockBytes = 48;   // what an allocation with its reference counts costs beside

int depth_of(const Value& value) {
  if (const List* list = value.list()) return list->depth;
  if (const Dict* dict = value.dict()) return dict->depth;
  return 0;
}

int depth_above(int depth, const Value& item) {
  depth = std::max(depth, 1 + depth_of(item));
  require(depth <= kMaxValueDepth, "lists and dicts are nested deeper than {} levels",
          kMaxValueDepth);
  return depth;
}

// Dict keys in some total order in which exactly those that Python holds for equal are equal.
std::strong_ordering order_keys(const Value& a, const Value& b);

int key_rank(const Value& key) {
  if (key.is<None>()) return 0;
  if (key.is<Undefined>()) return 1;
  if (key.number()) return 2;
  if (key.string()) return 3;
  if (key.object()) return 4;
  if (key.list() && key.list()->form != List::Form::kList) return 5;
  fail("unhashable type: '{}'", type_name(key));
}

std::strong_ordering order_numbers(const Value& a, const Value& b) {
  if (a.integer() && b.integer()) return *a.integer() <=> *b.integer();
  // The mantissa of a long double holds any int64_t and any double.
  const auto wide = [](const Value& v) {
    return v.integer() ? static_cast<long double>(*v.integer())
                       : static_cast<long double>(*v.number());
  };
  const long double x = wide(a), y = wide(b);
  if (std::isnan(x) || std::isnan(y)) return std::isnan(y) <=> std::isnan(x);
  return x < y   ? std::strong_ordering::less
         : x > y ? std::strong_ordering::greater
                 : std::strong_ordering::equal;
}

std::strong_ordering order_keys(const Value& a, const Value& b) {
  const int rank = key_rank(a);
  if (const auto order = rank <=> key_rank(b); order != 0) return order;
  switch (rank) {
    case 2:
      return order_numbers(a, b);
    case 3:
      return a.string()->text.compare(b.string()->text) <=> 0;
    case 4:
      return std::compare_three_way()(a.object(), b.object());
    case 5: {
      const List &x = *a.list(), &y = *b.list();
      if (x.form != List::Form::kTuple || y.form != List::Form::kTuple)
        return std::compare_three_way()(&x, &y);
      for (size_t i = 0; i < std::min(x.items.size(), y.items.size()); ++i)
        if (const auto order = order_keys(x.items[i], y.items[i]); order != 0) return order;
      return x.items.size() <=> y.items.size();
    }
    default:
      return std::strong_ordering::equal;
  }
}

std::strong_ordering order_keys(const Value& a, std::string_view b) {
  if (const auto order = key_rank(a) <=> 3; order != 0) return order;
  return a.string()->text.compare(b) <=> 0;
}

// A tuple is a key when all its items are.
void require_hashable(const Value& key) {
  if (key_rank(key) == 5 && key.list()->form == List::Form::kTuple)
    for (const Value& item : key.list()->items) require_hashable(item);
}

template <class Key>
const Value* find_in(const Dict& dict, const Key& key) {
  const auto at = std::lower_bound(
      dict.by_key.begin(), dict.by_key.end(), key,
      [&](uint32_t i, const Key& k) { return order_keys(dict.items[i].first, k) < 0; });
  if (at == dict.by_key.end() || order_keys(dict.items[*at].first, key) != 0) return nullptr;
  return &dict.items[*at].second;
}

Value json_value(Meter& meter, const nlohmann::ordered_json& json, int depth) {
  require(depth < kMaxValueDepth, "the variables are nested deeper than {} levels", kMaxValueDepth);
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::ordered_json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_unsigned:
      require(json.get<uint64_t>() <= INT64_MAX, "the number {} does not fit 64 bits with a sign",
              json.get<uint64_t>());
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_float:
      return json.get<double>();
    case nlohmann::ordered_json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      require_utf8(text, "a variable");
      return make_string(meter, text);
    }
    case nlohmann::ordered_json::value_t::array: {
      ListBuilder list(meter);
      for (const auto& item : json) list.push(json_value(meter, item, depth + 1));
      return std::move(list).finish();
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      for (const auto& [key, item] : json.items()) {
        require_utf8(key, "a variable's key");
        items.emplace_back(make_string(meter, key), json_value(meter, item, depth + 1));
      }
      return make_dict(meter, std::move(items));
    }
    default:
      return None{};
  }
}

}  // namespace

std::optional<int64_t> Value::integer() const {
  if (const bool* b = as<bool>()) return *b;
  if (const int64_t* i = as<int64_t>()) return *i;
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const double* d = as<double>()) return *d;
  if (const auto i = integer()) return static_cast<double>(*i);
  return std::nullopt;
}

const Value* Dict::find(const Value& key) const {
  require_hashable(key);
  return find_in(*this, key);
}

const Value* Dict::find(std::string_view key) const { return find_in(*this, key); }

Value Object::call(Meter&, Args&&) { fail("'{}' object is not callable", type()); }

Value StringBuilder::finish(bool safe) && {
  charge_.add(sizeof(String) + kBlockBytes);
  auto string = std::make_shared<String>();
  string->text = std::move(text_);
  string->safe = safe;
  string->charge = std::move(charge_);
  return StringPtr(std::move(string));
}

void ListBuilder::push(Value item) {
  charge_.add(sizeof(Value));
  depth_ = depth_above(depth_, item);
  items_.push_back(std::move(item));
}

Value ListBuilder::finish(List::Form form, std::string label) && {
  charge_.add(sizeof(List) + kBlockBytes);
  auto list = std::make_shared<List>();
  list->form = form;
  list->items = std::move(items_);
  list->label = std::move(label);
  list->depth = depth_;
  list->charge = std::move(charge_);
  return ListPtr(std::move(list));
}

Value make_string(Meter& meter, std::string_view text, bool safe) {
  StringBuilder string(meter);
  string.append(text);
  return std::move(string).finish(safe);
}

Value make_constant(std::string text) {
  auto string = std::make_shared<String>();
  string->text = std::move(text);
  return StringPtr(std::move(string));
}

Value make_list(Meter& meter, std::vector<Value> items, List::Form form) {
  ListBuilder list(meter);
  for (Value& item : items) list.push(std::move(item));
  return std::move(list).finish(form);
}

Value make_dict(Meter& meter, std::vector<std::pair<Value, Value>> items) {
  auto dict = std::make_shared<Dict>();
  dict->charge = Charge(meter);
  dict->charge.add(sizeof(Dict) + kBlockBytes +
                   items.size() * (sizeof(items[0]) + sizeof(uint32_t)));
  dict->depth = 1;
  for (const auto& [key, value] : items) {
    require_hashable(key);
    dict->depth = depth_above(depth_above(dict->depth, key), value);
  }

  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return order_keys(items[a].first, items[b].first) < 0;
  });
  std::vector<bool> is_repeat(items.size());
  for (size_t i = 1, first = 0; i < order.size(); ++i) {
    if (order_keys(items[order[first]].first, items[order[i]].first) == 0) {
      items[order[first]].second = items[order[i]].second;
      is_repeat[order[i]] = true;
    } else {
      first = i;
    }
  }

  std::vector<uint32_t> position(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    position[i] = static_cast<uint32_t>(dict->items.size());
    if (!is_repeat[i]) dict->items.push_back(std::move(items[i]));
  }
  for (const uint32_t i : order)
    if (!is_repeat[i]) dict->by_key.push_back(position[i]);
  return DictPtr(std::move(dict));
}

Value make_undefined(Meter& meter, std::string_view why) {
  return Undefined{*make_string(meter, why).as<StringPtr>()};
}

Value from_json(Meter& meter, const nlohmann::ordered_json& json) {
  return json_value(meter, json, 0);
}

std::string_view type_name(const Value& value) {
  struct Name {
    std::string_view operator()(None) const { return "NoneType"; }
    std::string_view operator()(const Undefined&) const { return "Undefined"; }
    std::string_view operator()(bool) const { return "bool"; }
    std::string_view operator()(int64_t) const { return "int"; }
    std::string_view operator()(double) const { return "float"; }
    std::string_view operator()(const StringPtr& s) const { return s->safe ? "Markup" : "str"; }
    std::string_view operator()(const ListPtr& list) const {
      switch (list->form) {
        case List::Form::kList:
          return "list";
        case List::Form::kTuple:
          return "tuple";
        case List::Form::kRange:
          return "range";
        default:
          return list->label;
      }
    }
    std::string_view operator()(const DictPtr&) const { return "dict"; }
    std::string_view operator()(const ObjectPtr& object) const { return object->type(); }
  };
  return std::visit(Name{}, value.data);
}

void require_defined(const Value& value) {
  if (const auto* undefined = value.as<Undefined>()) throw Error(undefined->why->text);
}

}  // namespace ei::jinja
