#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "ei/jinja/meter.h"

namespace ei::jinja {

struct String;
struct List;
struct Dict;
struct Object;
using StringPtr = std::shared_ptr<const String>;
using ListPtr = std::shared_ptr<const List>;
using DictPtr = std::shared_ptr<const Dict>;
using ObjectPtr = std::shared_ptr<Object>;

template <class T, class Variant>
struct IsAmong;
template <class T, class... Ts>
struct IsAmong<T, std::variant<Ts...>> : std::disjunction<std::is_same<T, Ts>...> {};

struct None {};

// The outcome of looking for what is not there: prints as nothing, and any other use of it is an
// error that says `why`.
struct Undefined {
  StringPtr why;
};

// A Python value. Strings, lists and dicts never change once made.
class Value {
 public:
  using Data =
      std::variant<None, Undefined, bool, int64_t, double, StringPtr, ListPtr, DictPtr, ObjectPtr>;

  Value() = default;
  template <class T>
  Value(T data) requires(IsAmong<T, Data>::value) : data(std::in_place_type<T>, std::move(data)) {}

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data);
  }
  template <class T>
  const T* as() const {
    return std::get_if<T>(&data);
  }

  // What it points to, or null when it is of another type.
  const String* string() const { return pointee<StringPtr>(); }
  const List* list() const { return pointee<ListPtr>(); }
  const Dict* dict() const { return pointee<DictPtr>(); }
  Object* object() const { return pointee<ObjectPtr>(); }
  std::optional<int64_t> integer() const;  // also of a boolean
  std::optional<double> number() const;    // of a boolean, integer or float

  Data data;

 private:
  template <class P>
  typename P::element_type* pointee() const {
    const P* p = as<P>();
    return p != nullptr ? p->get() : nullptr;
  }
};

struct String {
  std::string text;  // UTF-8
  Charge charge;
};

// Everything with items in order. An iterator's items, which filters give, can be had once:
// `n_used` of them are gone.
struct List {
  enum class Form { kList, kTuple, kIterator };
  Form form;
  std::vector<Value> items;
  int depth;  // 1 + that of the deepest item
  Charge charge;
  mutable size_t n_used = 0;
};

// In order of insertion. Keys are strings, integers (which true and false are) and none. `by_key`
// lists the positions in order of the keys, for look-up.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  std::vector<uint32_t> by_key;
  int depth;
  Charge charge;

  const Value* find(const Value& key) const;  // null when there is none
  const Value* find(std::string_view key) const;
};

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Functions, namespaces, loops.
struct Object {
  virtual ~Object() = default;
  virtual std::string_view type() const = 0;  // as Python names it
  virtual std::string repr(Meter&) const { return "<" + std::string(type()) + ">"; }
  virtual std::optional<Value> attribute(Meter&, std::string_view) { return std::nullopt; }
  virtual bool callable() const { return false; }
  virtual Value call(Meter&, Args&&);
};

// Builds a string piece by piece, paying as it grows.
class StringBuilder {
 public:
  explicit StringBuilder(Meter& meter) : charge_(meter) {}
  void append(std::string_view text) {
    charge_.add(text.size());
    text_ += text;
  }
  std::string_view text() const { return text_; }
  std::string take() && { return std::move(text_); }
  Value finish() &&;

 private:
  std::string text_;
  Charge charge_;
};

class ListBuilder {
 public:
  explicit ListBuilder(Meter& meter) : charge_(meter) {}
  void push(Value item);
  void reverse() { std::reverse(items_.begin(), items_.end()); }
  size_t size() const { return items_.size(); }
  Value finish(List::Form form = List::Form::kList) &&;

 private:
  std::vector<Value> items_;
  int depth_ = 1;
  Charge charge_;
};

Value make_string(Meter& meter, std::string_view text);
Value make_constant(std::string text);  // for templates: costs no rendering
Value make_list(Meter& meter, std::vector<Value> items, List::Form form = List::Form::kList);
// Of equal keys the first stays, with the last value. Throws Error for a key of another type.
Value make_dict(Meter& meter, std::vector<std::pair<Value, Value>> items);
Value make_undefined(Meter& meter, std::string_view why);
Value from_json(Meter& meter, const nlohmann::ordered_json& json);

// Python's names: "str", "int", "NoneType", ...
std::string_view type_name(const Value& value);

// Throws the Error of an undefined value; does nothing for others.
void require_defined(const Value& value);

}  // namespace ei::jinja
