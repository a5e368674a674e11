#include "ei/jinja/builtins.h"

namespace ei::jinja {
namespace {

using Property = bool (*)(const Value&);
template <Property kHolds>
Value has(Meter&, Args& args) {
  const Parameters p(args, "test", {"value"}, 1);
  return kHolds(p.get(0));
}

template <Comparison kHow>
Value compares(Meter& meter, Args& args) {
  const Parameters p(args, "test", {"value", "other"}, 2);
  return compare(meter, kHow, p.get(0), p.get(1));
}

Value is_same(Meter&, Args& args) {
  const Parameters p(args, "sameas", {"value", "other"}, 2);
  return same(p.get(0), p.get(1));
}

bool leaves(Meter& meter, const Value& value, const Value& divisor, int64_t rest) {
  return equal(meter, calculate(meter, Operator::kModulo, value, divisor), rest);
}

Value divisible_by(Meter& meter, Args& args) {
  const Parameters p(args, "divisibleby", {"value", "num"}, 2);
  return leaves(meter, p.get(0), p.get(1), 0);
}

template <int64_t kRest>
Value parity(Meter& meter, Args& args) {
  const Parameters p(args, "test", {"value"}, 1);
  return leaves(meter, p.get(0), int64_t{2}, kRest);
}

bool is_iterable(const Value& value) {
  return value.is<Undefined>() || value.string() || value.list() || value.dict();
}
bool is_sequence(const Value& value) {
  return is_iterable(value) && !(value.list() && value.list()->form == List::Form::kIterator);
}
bool is_mapping(const Value& value) { return value.dict() != nullptr; }
bool is_boolean(const Value& value) { return value.is<bool>(); }
bool is_defined(const Value& value) { return !value.is<Undefined>(); }
bool is_undefined(const Value& value) { return value.is<Undefined>(); }
bool is_none(const Value& value) { return value.is<None>(); }
bool is_true(const Value& value) { return value.is<bool>() && *value.as<bool>(); }
bool is_false(const Value& value) { return value.is<bool>() && !*value.as<bool>(); }
bool is_integer(const Value& value) { return value.is<int64_t>(); }
bool is_float(const Value& value) { return value.is<double>(); }
bool is_number(const Value& value) { return value.number().has_value(); }
bool is_string(const Value& value) { return value.string() != nullptr; }

constexpr NamedFunction kTests[] = {
    {"!=", compares<Comparison::kNotEqual>},
    {"<", compares<Comparison::kLess>},
    {"<=", compares<Comparison::kLessEqual>},
    {"==", compares<Comparison::kEqual>},
    {">", compares<Comparison::kGreater>},
    {">=", compares<Comparison::kGreaterEqual>},
    {"boolean", has<is_boolean>},
    {"defined", has<is_defined>},
    {"divisibleby", divisible_by},
    {"eq", compares<Comparison::kEqual>},
    {"equalto", compares<Comparison::kEqual>},
    {"even", parity<0>},
    {"false", has<is_false>},
    {"float", has<is_float>},
    {"ge", compares<Comparison::kGreaterEqual>},
    {"greaterthan", compares<Comparison::kGreater>},
    {"gt", compares<Comparison::kGreater>},
    {"in", compares<Comparison::kIn>},
    {"integer", has<is_integer>},
    {"iterable", has<is_iterable>},
    {"le", compares<Comparison::kLessEqual>},
    {"lessthan", compares<Comparison::kLess>},
    {"lt", compares<Comparison::kLess>},
    {"mapping", has<is_mapping>},
    {"ne", compares<Comparison::kNotEqual>},
    {"none", has<is_none>},
    {"number", has<is_number>},
    {"odd", parity<1>},
    {"sameas", is_same},
    {"sequence", has<is_sequence>},
    {"string", has<is_string>},
    {"true", has<is_true>},
    {"undefined", has<is_undefined>},
};

}  // namespace

Function find_test(std::string_view name) { return find_function(kTests, name); }

}  // namespace ei::jinja
