#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string_view>

#include "ei/jinja/python.h"

// Filters, tests, methods and global functions, by name. A filter or test has the value it is
// applied to as its first argument.
namespace ei::jinja {

using Function = Value (*)(Meter&, Args&);
Function find_filter(std::string_view name);  // null when there is none
Function find_list_filter(std::string_view name);
Function find_test(std::string_view name);  // gives a boolean

struct NamedFunction {
  std::string_view name;
  Function run;
};
template <size_t kSize>
Function find_function(const NamedFunction (&functions)[kSize], std::string_view name) {
  for (const NamedFunction& function : functions)
    if (function.name == name) return function.run;
  return nullptr;
}

// value.name for the methods that Python's str, dict, list and tuple have and that change nothing.
std::optional<Value> bind_method(Meter& meter, const Value& value, std::string_view name);
// Whether `name` is a method that would change a list or dict.
bool changes_value(const Value& value, std::string_view name);

// range, namespace, raise_exception, and strftime_now where it is given.
// `namespaces` holds those made, for their owner to clear at the end: they may hold themselves.
class Namespace;
using Namespaces = std::vector<std::shared_ptr<Namespace>>;
std::map<std::string_view, Value> make_globals(Meter& meter, const Options& options,
                                               Namespaces& namespaces);

class Namespace : public Object {
 public:
  explicit Namespace(Meter& meter) : charge_(meter) { charge_.add(sizeof(Namespace)); }
  std::string_view type() const override { return "Namespace"; }
  std::string repr(Meter& meter) const override;
  std::optional<Value> attribute(Meter& meter, std::string_view name) override;
  void set(std::string_view name, Value value);
  void clear() { attributes_.clear(); }

 private:
  std::map<std::string, Value, std::less<>> attributes_;
  Charge charge_;
};

// Puts arguments in the order of a function's parameters, as a Python call does. Throws Error for
// too many, unknown, repeated and (of the first `n_required`) missing ones.
class Parameters {
 public:
  Parameters(Args& args, std::string_view function, std::initializer_list<std::string_view> names,
             size_t n_required);

  const Value* operator[](size_t i) const { return values_[i]; }  // null when not given
  const Value& get(size_t i) const { return *values_[i]; }
  int64_t integer(size_t i, int64_t fallback) const;
  bool flag(size_t i, bool fallback) const;
  std::optional<std::string_view> text(size_t i) const;  // nothing for none

 private:
  std::vector<const Value*> values_;
  std::vector<std::string_view> names_;
};

// A function that is a value.
struct NativeFunction : Object {
  std::string_view type() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Meter& meter, Args&& args) override { return run(meter, args); }

  std::function<Value(Meter&, Args&)> run;
  Charge charge;
};
Value make_function(Meter& meter, std::function<Value(Meter&, Args&)> run);

// str.replace(): at most `limit` times when it is not negative.
Value replace(Meter& meter, std::string_view text, std::string_view from, std::string_view to,
              int64_t limit);
// str.join() over printed values.
Value join(Meter& meter, std::string_view separator, const Items& items);

}  // namespace ei::jinja
