#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ei/jinja/builtins.h"
#include "ei/jinja/python.h"

namespace ei::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

struct Arguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Expression {
  enum class Kind {
    kConstant,
    kName,
    kList,       // parts: the items
    kTuple,      // parts: the items
    kDict,       // parts: key, value, key, value, ...
    kAttribute,  // parts[0].name
    kItem,       // parts[0][parts[1]]
    kSlice,      // parts[0][parts[1]:parts[2]:parts[3]], null where left out
    kCall,       // parts[0](arguments)
    kFilter,     // parts[0] | name(arguments)
    kTest,       // parts[0] is name(arguments)
    kNegate,
    kNot,
    kAnd,
    kOr,
    kCalculate,  // parts[0] operation parts[1]
    kConcat,     // parts[0] ~ parts[1] ~ ...
    kCompare,    // parts[0] comparisons[0] parts[1] comparisons[1] ...
    kCondition,  // parts[1] if parts[0] else parts[2], which may be null
  };

  Kind kind = Kind::kConstant;
  int line = 0;
  int height = 1;  // of the tree below: what evaluation recurses
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> parts;
  Arguments arguments;
  Function function = nullptr;  // of kFilter and kTest; null when there is none of that name
  Operator operation{};
  std::vector<Comparison> comparisons;
};

// What is assigned to: a name, an attribute of a namespace, or several targets.
struct Target {
  std::string name;
  std::string attribute;  // of the namespace `name`, when not empty
  std::vector<Target> parts;
  bool is_tuple = false;
};

struct Statement;
using Body = std::vector<Statement>;

struct Parameter {
  std::string name;
  ExpressionPtr fallback;  // or null
};

struct MacroDefinition {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
};

struct Statement {
  enum class Kind {
    kText,      // text
    kPrint,     // expressions[0]
    kIf,        // bodies[i] if expressions[i]; one body more for else
    kFor,       // targets[0] in expressions[0], those for which expressions[1] (if there) holds:
                // bodies[0], else bodies[1] (if there)
    kSet,       // targets[0] = expressions[0]
    kSetBlock,  // targets[0] = what bodies[0] prints
    kScope,     // bodies[0] with its own variables
    kMacro,     // defines `macro`
    kBreak,
    kContinue,
  };

  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  std::vector<ExpressionPtr> expressions;
  std::vector<Target> targets;
  std::vector<Body> bodies;
  std::unique_ptr<const MacroDefinition> macro;
};

}  // namespace ei::jinja
