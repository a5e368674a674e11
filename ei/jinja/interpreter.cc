#include "ei/jinja/interpreter.h"

#include "ei/jinja/loop.h"

namespace ei::jinja {

void Scope::set(std::string_view name, Value value) {
  const auto found = values_.find(name);
  if (found != values_.end()) {
    found->second = std::move(value);
    return;
  }
  charge_.add(128 + name.size());
  values_.emplace(name, std::move(value));
}

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent_.get())
    if (const auto found = scope->values_.find(name); found != scope->values_.end())
      return &found->second;
  return nullptr;
}

Interpreter::Interpreter(Meter& meter, const Value& variables, const Options& options)
    : meter_(meter),
      variables_(variables),
      globals_(make_globals(meter, options, namespaces_)),
      output_(meter) {}

Interpreter::~Interpreter() {
  // Namespaces may hold each other in circles.
  for (const auto& space : namespaces_) space->clear();
}

std::string Interpreter::run(const Body& body) {
  execute(body, std::make_shared<Scope>(meter_, nullptr));
  return std::move(output_).take();
}

Interpreter::ScopePtr Interpreter::inner(const ScopePtr& scope) {
  return std::make_shared<Scope>(meter_, scope);
}

void Interpreter::put(std::string_view text) {
  output_.append(text);
  const int64_t limit = meter_.limits().max_output_bytes;
  if (captures_ == 0 && static_cast<int64_t>(output_.text().size()) > limit)
    fail("the text is longer than {} bytes", limit);
}

void Interpreter::put(const Value& value) {
  if (value.string() != nullptr)
    put(value.string()->text);
  else if (!value.is<Undefined>())
    put(to_string(meter_, value).string()->text);
}

Interpreter::Flow Interpreter::execute(const Body& body, const ScopePtr& scope) {
  const Level level(meter_);
  for (const Statement& statement : body)
    if (const Flow flow = execute(statement, scope); flow != Flow::kNext) return flow;
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute(const Statement& statement, const ScopePtr& scope) {
  using Kind = Statement::Kind;
  meter_.step();
  line_ = statement.line;
  switch (statement.kind) {
    case Kind::kText:
      put(statement.text);
      return Flow::kNext;
    case Kind::kPrint:
      put(evaluate(*statement.expressions[0], scope));
      return Flow::kNext;
    case Kind::kIf:
      return execute_if(statement, scope);
    case Kind::kFor:
      return execute_for(statement, scope);
    case Kind::kSet:
      assign(statement.targets[0], evaluate(*statement.expressions[0], scope), *scope);
      return Flow::kNext;
    case Kind::kSetBlock:
      return execute_set_block(statement, scope);
    case Kind::kScope:
      return execute(statement.bodies[0], inner(scope));
    case Kind::kMacro:
      scope->set(statement.macro->name, make_macro(*statement.macro, scope));
      return Flow::kNext;
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute_if(const Statement& statement, const ScopePtr& scope) {
  size_t i = 0;
  while (i < statement.expressions.size() && !truthy(evaluate(*statement.expressions[i], scope)))
    ++i;
  return i < statement.bodies.size() ? execute(statement.bodies[i], scope) : Flow::kNext;
}

Interpreter::Flow Interpreter::execute_for(const Statement& statement, const ScopePtr& scope) {
  const Target& target = statement.targets[0];
  Loop::Accepts accepts;
  if (statement.expressions.size() > 1)
    accepts = [&](const Value& item) {
      const ScopePtr own = inner(scope);
      assign(target, item, *own);
      return truthy(evaluate(*statement.expressions[1], own));
    };
  const auto loop = std::make_shared<Loop>(
      meter_, iterate(meter_, evaluate(*statement.expressions[0], scope)), accepts);
  struct End {  // the template may keep the loop, but its filter ends with this function
    Loop& loop;
    ~End() { loop.end(); }
  } const end{*loop};

  bool completes_one = false;
  while (const Value* item = loop->advance()) {
    const ScopePtr own = inner(scope);
    own->set("loop", ObjectPtr(loop));
    assign(target, *item, *own);
    const Flow flow = execute(statement.bodies[0], own);
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) completes_one = true;
  }
  // As in Jinja, rounds that were cut short by break or continue do not count.
  if (!completes_one && statement.bodies.size() > 1)
    return execute(statement.bodies[1], inner(scope));
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute_set_block(const Statement& statement,
                                                 const ScopePtr& scope) {
  Flow flow = Flow::kNext;
  const Value text = capture(statement.bodies[0], inner(scope), flow);
  if (flow == Flow::kNext) assign(statement.targets[0], text, *scope);
  return flow;
}

Value Interpreter::capture(const Body& body, const ScopePtr& scope, Flow& flow) {
  StringBuilder outer = std::exchange(output_, StringBuilder(meter_));
  ++captures_;
  try {
    flow = execute(body, scope);
  } catch (...) {
    --captures_;
    throw;
  }
  --captures_;
  return std::exchange(output_, std::move(outer)).finish();
}

void Interpreter::assign(const Target& target, const Value& value, Scope& scope) {
  if (target.is_tuple) {
    require_defined(value);
    const Items items = iterate(meter_, value);
    require(items.size() == target.parts.size(), "expected {} values to unpack, found {}",
            target.parts.size(), items.size());
    for (size_t i = 0; i < target.parts.size(); ++i) assign(target.parts[i], items[i], scope);
  } else if (!target.attribute.empty()) {
    const Value* holder = scope.find(target.name);
    auto* space = holder ? dynamic_cast<Namespace*>(holder->object()) : nullptr;
    require(space != nullptr, "cannot assign attribute on non-namespace object '{}'", target.name);
    space->set(target.attribute, value);
  } else {
    scope.set(target.name, value);
  }
}

Value Interpreter::make_macro(const MacroDefinition& definition, const ScopePtr& scope) {
  if (kept_.empty() || kept_.back() != scope) kept_.push_back(scope);
  return ObjectPtr(std::make_shared<Macro>(*this, definition, *scope, meter_));
}

std::optional<Value> Macro::attribute(Meter& meter, std::string_view name) {
  if (name == "name") return make_string(meter, definition.name);
  return std::nullopt;
}

Value Macro::call(Meter&, Args&& args) { return interpreter.call_macro(*this, std::move(args)); }

Value Interpreter::call_macro(const Macro& macro, Args&& args) {
  const MacroDefinition& definition = macro.definition;
  const ScopePtr scope = inner(macro.scope.shared_from_this());
  const auto take_named = [&](std::string_view name) -> std::optional<Value> {
    for (auto at = args.named.begin(); at != args.named.end(); ++at) {
      if (at->first != name) continue;
      Value value = std::move(at->second);
      args.named.erase(at);
      return value;
    }
    return std::nullopt;
  };

  const size_t n_parameters = definition.parameters.size();
  require(args.positional.size() <= n_parameters,
          "macro '{}' takes not more than {} arguments, {} given", definition.name, n_parameters,
          args.positional.size());
  for (size_t i = 0; i < n_parameters; ++i) {
    const Parameter& parameter = definition.parameters[i];
    std::optional<Value> value;
    if (i < args.positional.size())
      value = args.positional[i];
    else
      value = take_named(parameter.name);
    if (!value && parameter.fallback) value = evaluate(*parameter.fallback, scope);
    if (!value)
      value =
          make_undefined(meter_, fmt::format("parameter '{}' was not provided", parameter.name));
    scope->set(parameter.name, *std::move(value));
  }
  require(args.named.empty(), "macro '{}' takes no keyword argument '{}'", definition.name,
          args.named.empty() ? "" : args.named[0].first);

  Flow flow = Flow::kNext;
  return capture(definition.body, scope, flow);
}

}  // namespace ei::jinja
