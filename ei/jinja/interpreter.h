#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ei/jinja/ast.h"

namespace ei::jinja {

// The variables of a block. Loops, macros and other blocks with variables of their own have one
// each, which sees those around it.
class Scope : public std::enable_shared_from_this<Scope> {
 public:
  Scope(Meter& meter, std::shared_ptr<Scope> parent) : parent_(std::move(parent)), charge_(meter) {
    charge_.add(sizeof(Scope));
  }

  void set(std::string_view name, Value value);
  const Value* find(std::string_view name) const;

 private:
  std::shared_ptr<Scope> parent_;
  std::map<std::string, Value, std::less<>> values_;
  Charge charge_;
};

class Interpreter;

// A macro together with the scope it was defined in.
struct Macro : Object {
  Macro(Interpreter& interpreter, const MacroDefinition& definition, Scope& scope, Meter& meter)
      : interpreter(interpreter), definition(definition), scope(scope), charge(meter) {
    charge.add(sizeof(Macro));
  }
  std::string_view type() const override { return "Macro"; }
  std::string repr(Meter&) const override { return "<Macro '" + definition.name + "'>"; }
  bool callable() const override { return true; }
  std::optional<Value> attribute(Meter& meter, std::string_view name) override;
  Value call(Meter& meter, Args&& args) override;

  Interpreter& interpreter;
  const MacroDefinition& definition;
  Scope& scope;  // kept by the interpreter: it holds the macro, so the macro must not hold it
  Charge charge;
};

// Renders one template once.
class Interpreter {
 public:
  // All are used until run() ends.
  Interpreter(Meter& meter, const Value& variables, const Options& options);
  ~Interpreter();

  std::string run(const Body& body);
  Value call_macro(const Macro& macro, Args&& args);

  int line() const { return line_; }  // of what is being evaluated, for errors

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using ScopePtr = std::shared_ptr<Scope>;

  ScopePtr inner(const ScopePtr& scope);
  Flow execute(const Body& body, const ScopePtr& scope);
  Flow execute(const Statement& statement, const ScopePtr& scope);
  Flow execute_if(const Statement& statement, const ScopePtr& scope);
  Flow execute_for(const Statement& statement, const ScopePtr& scope);
  Flow execute_set_block(const Statement& statement, const ScopePtr& scope);
  Value make_macro(const MacroDefinition& definition, const ScopePtr& scope);
  Value capture(const Body& body, const ScopePtr& scope, Flow& flow);
  void assign(const Target& target, const Value& value, Scope& scope);
  void put(const Value& value);
  void put(std::string_view text);

  Value evaluate(const Expression& node, const ScopePtr& scope);
  Value evaluate_name(const Expression& node, const Scope& scope);
  Value evaluate_list(const Expression& node, const ScopePtr& scope);
  Value evaluate_dict(const Expression& node, const ScopePtr& scope);
  Value evaluate_slice(const Expression& node, const ScopePtr& scope);
  Value evaluate_call(const Expression& node, const ScopePtr& scope);
  Value evaluate_function(const Expression& node, const ScopePtr& scope);
  Value evaluate_concat(const Expression& node, const ScopePtr& scope);
  Value evaluate_compare(const Expression& node, const ScopePtr& scope);
  Value evaluate_condition(const Expression& node, const ScopePtr& scope);
  void evaluate_arguments(const Arguments& arguments, const ScopePtr& scope, Args& args);

  Meter& meter_;
  const Value& variables_;
  Namespaces namespaces_;
  std::map<std::string_view, Value> globals_;
  std::vector<ScopePtr> kept_;  // those with macros
  StringBuilder output_;        // innermost: of the template, or of the block being captured
  int captures_ = 0;            // around output_
  int line_ = 1;
};

}  // namespace ei::jinja
