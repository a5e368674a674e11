#include "ei/jinja/interpreter.h"

namespace ei::jinja {

Value Interpreter::evaluate(const Expression& node, const ScopePtr& scope) {
  using Kind = Expression::Kind;
  const Level level(meter_);
  meter_.step();
  line_ = node.line;
  const auto part = [&](size_t i) { return evaluate(*node.parts[i], scope); };
  switch (node.kind) {
    case Kind::kConstant:
      return node.constant;
    case Kind::kName:
      return evaluate_name(node, *scope);
    case Kind::kList:
    case Kind::kTuple:
      return evaluate_list(node, scope);
    case Kind::kDict:
      return evaluate_dict(node, scope);
    case Kind::kAttribute:
      return get_attribute(meter_, part(0), node.name);
    case Kind::kItem: {
      const Value holder = part(0);
      return get_item(meter_, holder, part(1));
    }
    case Kind::kSlice:
      return evaluate_slice(node, scope);
    case Kind::kCall:
      return evaluate_call(node, scope);
    case Kind::kFilter:
    case Kind::kTest:
      return evaluate_function(node, scope);
    case Kind::kNegate:
      return negate(part(0));
    case Kind::kNot:
      return !truthy(part(0));
    case Kind::kAnd:
    case Kind::kOr: {
      Value left = part(0);
      return truthy(left) == (node.kind == Kind::kOr) ? left : part(1);
    }
    case Kind::kCalculate: {
      const Value left = part(0), right = part(1);
      line_ = node.line;
      return calculate(meter_, node.operation, left, right);
    }
    case Kind::kConcat:
      return evaluate_concat(node, scope);
    case Kind::kCompare:
      return evaluate_compare(node, scope);
    case Kind::kCondition:
      return evaluate_condition(node, scope);
  }
  return {};
}

Value Interpreter::evaluate_name(const Expression& node, const Scope& scope) {
  if (const Value* value = scope.find(node.name)) return *value;
  if (const Value* value = variables_.dict()->find(node.name)) return *value;
  const auto global = globals_.find(node.name);
  if (global != globals_.end()) return global->second;
  return make_undefined(meter_, fmt::format("'{}' is undefined", node.name));
}

Value Interpreter::evaluate_list(const Expression& node, const ScopePtr& scope) {
  ListBuilder items(meter_);
  for (const auto& part : node.parts) items.push(evaluate(*part, scope));
  return std::move(items).finish(node.kind == Expression::Kind::kList ? List::Form::kList
                                                                      : List::Form::kTuple);
}

Value Interpreter::evaluate_dict(const Expression& node, const ScopePtr& scope) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i < node.parts.size(); i += 2) {
    Value key = evaluate(*node.parts[i], scope);
    items.emplace_back(std::move(key), evaluate(*node.parts[i + 1], scope));
  }
  return make_dict(meter_, std::move(items));
}

Value Interpreter::evaluate_slice(const Expression& node, const ScopePtr& scope) {
  std::vector<Value> parts;
  for (const auto& part : node.parts) parts.push_back(part ? evaluate(*part, scope) : Value());
  line_ = node.line;
  return slice(meter_, parts[0], parts[1], parts[2], parts[3]);
}

void Interpreter::evaluate_arguments(const Arguments& arguments, const ScopePtr& scope,
                                     Args& args) {
  for (const auto& argument : arguments.positional)
    args.positional.push_back(evaluate(*argument, scope));
  for (const auto& [name, argument] : arguments.named) {
    for (const auto& other : args.named)
      require(other.first != name, "several values for the keyword argument '{}'", name);
    args.named.emplace_back(name, evaluate(*argument, scope));
  }
}

Value Interpreter::evaluate_call(const Expression& node, const ScopePtr& scope) {
  const Value callee = evaluate(*node.parts[0], scope);
  Args args;
  evaluate_arguments(node.arguments, scope, args);
  line_ = node.line;
  require_defined(callee);
  require(callee.object() != nullptr, "'{}' object is not callable", type_name(callee));
  return callee.object()->call(meter_, std::move(args));
}

Value Interpreter::evaluate_function(const Expression& node, const ScopePtr& scope) {
  Args args;
  args.positional.push_back(evaluate(*node.parts[0], scope));
  evaluate_arguments(node.arguments, scope, args);
  line_ = node.line;
  require(node.function != nullptr, "No {} named '{}'.",
          node.kind == Expression::Kind::kFilter ? "filter" : "test", node.name);
  return node.function(meter_, args);
}

Value Interpreter::evaluate_concat(const Expression& node, const ScopePtr& scope) {
  StringBuilder text(meter_);
  for (const auto& part : node.parts) print(meter_, evaluate(*part, scope), text);
  return std::move(text).finish();
}

Value Interpreter::evaluate_compare(const Expression& node, const ScopePtr& scope) {
  Value left = evaluate(*node.parts[0], scope);
  for (size_t i = 0; i < node.comparisons.size(); ++i) {
    Value right = evaluate(*node.parts[i + 1], scope);
    line_ = node.line;
    if (!compare(meter_, node.comparisons[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate_condition(const Expression& node, const ScopePtr& scope) {
  if (truthy(evaluate(*node.parts[0], scope))) return evaluate(*node.parts[1], scope);
  if (node.parts[2] != nullptr) return evaluate(*node.parts[2], scope);
  return make_undefined(meter_, fmt::format("the inline if-expression on line {} evaluated to "
                                            "false and no else section was defined.",
                                            node.line));
}

}  // namespace ei::jinja
