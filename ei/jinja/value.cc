#include "ei/jinja/value.h"

#include <algorithm>
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
// Negative: no key.
int key_rank(const Value& key) { return key.string() ? 2 : key.integer() ? 1 : key.is<None>() - 1; }

std::strong_ordering order_keys(const Value& a, const Value& b) {
  const int rank = key_rank(a);
  if (const auto order = rank <=> key_rank(b); order != 0) return order;
  if (rank == 2) return a.string()->text.compare(b.string()->text) <=> 0;
  return a.integer().value_or(0) <=> b.integer().value_or(0);
}

std::strong_ordering order_keys(const Value& a, std::string_view b) {
  if (const auto order = key_rank(a) <=> 2; order != 0) return order;
  return a.string()->text.compare(b) <=> 0;
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
  using Type = nlohmann::ordered_json::value_t;
  require(depth < kMaxValueDepth, "the variables are nested deeper than {} levels", kMaxValueDepth);
  switch (json.type()) {
    case Type::boolean:
      return json.get<bool>();
    case Type::number_integer:
      return json.get<int64_t>();
    case Type::number_unsigned:
      require(json.get<uint64_t>() <= INT64_MAX, "the number {} does not fit 64 bits with a sign",
              json.get<uint64_t>());
      return json.get<int64_t>();
    case Type::number_float:
      return json.get<double>();
    case Type::string: {
      const auto& text = json.get_ref<const std::string&>();
      require_utf8(text, "a variable");
      return make_string(meter, text);
    }
    case Type::array: {
      ListBuilder list(meter);
      for (const auto& item : json) list.push(json_value(meter, item, depth + 1));
      return std::move(list).finish();
    }
    case Type::object: {
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

const Value* Dict::find(const Value& key) const { return find_in(*this, key); }

const Value* Dict::find(std::string_view key) const { return find_in(*this, key); }

Value Object::call(Meter&, Args&&) { fail("'{}' object is not callable", type()); }

Value StringBuilder::finish() && {
  charge_.add(sizeof(String) + kBlockBytes);
  auto string = std::make_shared<String>();
  string->text = std::move(text_);
  string->charge = std::move(charge_);
  return StringPtr(std::move(string));
}

void ListBuilder::push(Value item) {
  charge_.add(sizeof(Value));
  depth_ = depth_above(depth_, item);
  items_.push_back(std::move(item));
}

Value ListBuilder::finish(List::Form form) && {
  charge_.add(sizeof(List) + kBlockBytes);
  auto list = std::make_shared<List>();
  list->form = form;
  list->items = std::move(items_);
  list->depth = depth_;
  list->charge = std::move(charge_);
  return ListPtr(std::move(list));
}

Value make_string(Meter& meter, std::string_view text) {
  StringBuilder string(meter);
  string.append(text);
  return std::move(string).finish();
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
    require(key_rank(key) >= 0, "a dict's key is of type '{}', expected a str, int or None",
            type_name(key));
    dict->depth = depth_above(dict->depth, value);
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
    std::string_view operator()(const StringPtr&) const { return "str"; }
    std::string_view operator()(const ListPtr& list) const {
      constexpr std::string_view kNames[] = {"list", "tuple", "generator"};
      return kNames[static_cast<size_t>(list->form)];
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
