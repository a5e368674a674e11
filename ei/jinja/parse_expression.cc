#include <algorithm>

#include "ei/jinja/parser.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

using Kind = Expression::Kind;

constexpr int kMaxNesting = 60;  // brackets in brackets, blocks in blocks
constexpr int kMaxHeight = 150;  // of an expression's tree; each of a + b + c ... adds one

int height_of(const ExpressionPtr& node) { return node != nullptr ? node->height : 0; }

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (parser_.nesting_ >= kMaxNesting)
    parser_.fail_here(fmt::format("nested deeper than {} levels", kMaxNesting));
  ++parser_.nesting_;
}

void ExpressionParser::fail_here(const std::string& what) const {
  throw SyntaxError(token().line, what);
}

void ExpressionParser::fail_unexpected(std::string_view wanted) const {
  fail_here(fmt::format("expected {}, found {}", wanted, quote(token().text.substr(0, 40))));
}

void ExpressionParser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail_unexpected("'" + std::string(op) + "'");
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail_unexpected("'" + std::string(name) + "'");
}

void ExpressionParser::expect(Token::Kind kind, std::string_view what) {
  if (token().kind != kind) fail_unexpected(what);
  advance();
}

std::string ExpressionParser::take_name() {
  if (token().kind != Token::Kind::kName) fail_unexpected("a name");
  return tokens_[at_++].text;
}

Expression ExpressionParser::make(Kind kind) const {
  Expression node;
  node.kind = kind;
  node.line = token().line;
  return node;
}

ExpressionPtr ExpressionParser::finish(Expression node) const {
  int below = 0;
  for (const auto& part : node.parts) below = std::max(below, height_of(part));
  for (const auto& part : node.arguments.positional) below = std::max(below, height_of(part));
  for (const auto& part : node.arguments.named) below = std::max(below, height_of(part.second));
  node.height = below + 1;
  if (node.height > kMaxHeight)
    fail_here(fmt::format("an expression of more than {} levels", kMaxHeight));
  return std::make_unique<const Expression>(std::move(node));
}

ExpressionPtr ExpressionParser::binary(Kind kind, ExpressionPtr a, ExpressionPtr b,
                                       Operator operation) const {
  Expression node = make(kind);
  node.operation = operation;
  node.parts.push_back(std::move(a));
  node.parts.push_back(std::move(b));
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_expression() {
  const Nesting nesting(*this);
  ExpressionPtr value = parse_or();
  while (is_name("if")) {
    Expression node = make(Kind::kCondition);
    advance();
    node.parts.push_back(parse_or());
    node.parts.push_back(std::move(value));
    node.parts.push_back(skip_name("else") ? parse_expression() : nullptr);
    value = finish(std::move(node));
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (skip_name("or")) left = binary(Kind::kOr, std::move(left), parse_and());
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (skip_name("and")) left = binary(Kind::kAnd, std::move(left), parse_not());
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const Nesting nesting(*this);
  Expression node = make(Kind::kNot);
  advance();
  node.parts.push_back(parse_not());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_compare() {
  constexpr std::pair<std::string_view, Comparison> kComparisons[] = {
      {"==", Comparison::kEqual},  {"!=", Comparison::kNotEqual},
      {"<", Comparison::kLess},    {"<=", Comparison::kLessEqual},
      {">", Comparison::kGreater}, {">=", Comparison::kGreaterEqual}};
  Expression node = make(Kind::kCompare);
  node.parts.push_back(parse_sum());
  while (true) {
    const auto* found = std::find_if(std::begin(kComparisons), std::end(kComparisons),
                                     [&](const auto& c) { return is_operator(c.first); });
    if (found != std::end(kComparisons)) {
      node.comparisons.push_back(found->second);
    } else if (is_name("in")) {
      node.comparisons.push_back(Comparison::kIn);
    } else if (is_name("not") && next_token().kind == Token::Kind::kName &&
               next_token().text == "in") {
      node.comparisons.push_back(Comparison::kNotIn);
      advance();
    } else {
      break;
    }
    advance();
    node.parts.push_back(parse_sum());
  }
  return node.comparisons.empty() ? std::move(node.parts[0]) : finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (is_operator("+") || is_operator("-")) {
    const Operator op = is_operator("+") ? Operator::kAdd : Operator::kSubtract;
    advance();
    left = binary(Kind::kCalculate, std::move(left), parse_concat(), op);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_concat() {
  Expression node = make(Kind::kConcat);
  do node.parts.push_back(parse_product());
  while (skip_operator("~"));
  return node.parts.size() == 1 ? std::move(node.parts[0]) : finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_product() {
  constexpr std::pair<std::string_view, Operator> kOperators[] = {{"*", Operator::kMultiply},
                                                                  {"/", Operator::kDivide},
                                                                  {"//", Operator::kFloorDivide},
                                                                  {"%", Operator::kModulo}};
  ExpressionPtr left = parse_unary(/*with_filters=*/true);
  while (true) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](const auto& op) { return is_operator(op.first); });
    if (found == std::end(kOperators)) return left;
    advance();
    left = binary(Kind::kCalculate, std::move(left), parse_unary(/*with_filters=*/true),
                  found->second);
  }
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr value;
  if (is_operator("-")) {
    const Nesting nesting(*this);
    Expression node = make(Kind::kNegate);
    advance();
    node.parts.push_back(parse_unary(/*with_filters=*/false));
    value = finish(std::move(node));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  while (with_filters) {
    if (skip_operator("|"))
      value = parse_filter(std::move(value));
    else if (is_name("is"))
      value = parse_test(std::move(value));
    else if (is_operator("("))
      value = parse_call(std::move(value));
    else
      break;
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_primary() {
  Expression node = make(Kind::kConstant);
  switch (token().kind) {
    case Token::Kind::kName: {
      const std::string name = take_name();
      if (name == "true" || name == "True" || name == "false" || name == "False") {
        node.constant = name == "true" || name == "True";
      } else if (name != "none" && name != "None") {
        node.kind = Kind::kName;
        node.name = name;
      }
      return finish(std::move(node));
    }
    case Token::Kind::kString: {
      std::string text;
      for (; token().kind == Token::Kind::kString; advance()) text += token().text;
      node.constant = make_constant(std::move(text));
      return finish(std::move(node));
    }
    case Token::Kind::kNumber:
      node.constant = token().number;
      advance();
      return finish(std::move(node));
    default:
      break;
  }
  if (is_operator("[")) return parse_list();
  if (is_operator("{")) return parse_dict();
  if (!skip_operator("(")) fail_unexpected("an expression");
  if (is_operator(")")) {
    advance();
    return finish(make(Kind::kTuple));
  }
  ExpressionPtr inner = parse_tuple(/*with_condition=*/true);
  expect_operator(")");
  return inner;
}

bool ExpressionParser::at_tuple_end() const {
  return token().kind == Token::Kind::kPrintEnd || token().kind == Token::Kind::kBlockEnd ||
         is_operator(")");
}

ExpressionPtr ExpressionParser::parse_tuple(bool with_condition) {
  Expression node = make(Kind::kTuple);
  do {
    if (at_tuple_end()) break;
    node.parts.push_back(with_condition ? parse_expression() : parse_or());
    if (node.parts.size() == 1 && !is_operator(",")) return std::move(node.parts[0]);
  } while (skip_operator(","));
  if (node.parts.empty()) fail_unexpected("an expression");
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_list() {
  Expression node = make(Kind::kList);
  advance();
  while (!is_operator("]")) {
    node.parts.push_back(parse_expression());
    if (!skip_operator(",")) break;
  }
  expect_operator("]");
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_dict() {
  Expression node = make(Kind::kDict);
  advance();
  while (!is_operator("}")) {
    node.parts.push_back(parse_expression());
    expect_operator(":");
    node.parts.push_back(parse_expression());
    if (!skip_operator(",")) break;
  }
  expect_operator("}");
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr node) {
  while (true) {
    if (is_operator(".") || is_operator("["))
      node = parse_subscript(std::move(node));
    else if (is_operator("("))
      node = parse_call(std::move(node));
    else
      return node;
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr value) {
  Expression node = make(Kind::kItem);
  node.parts.push_back(std::move(value));
  if (skip_operator(".")) {
    if (token().kind == Token::Kind::kNumber && token().number.is<int64_t>()) {
      Expression index = make(Kind::kConstant);
      index.constant = token().number;
      advance();
      node.parts.push_back(finish(std::move(index)));
    } else {
      node.kind = Kind::kAttribute;
      node.name = take_name();
    }
    return finish(std::move(node));
  }
  expect_operator("[");
  const auto at_part_end = [&] { return is_operator(":") || is_operator("]"); };
  node.parts.push_back(is_operator(":") ? nullptr : parse_tuple(/*with_condition=*/true));
  if (is_operator(":")) {
    node.kind = Kind::kSlice;
    for (int i = 0; i < 2; ++i)
      node.parts.push_back(skip_operator(":") && !at_part_end() ? parse_expression() : nullptr);
  }
  expect_operator("]");
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr callee) {
  Expression node = make(Kind::kCall);
  node.parts.push_back(std::move(callee));
  node.arguments = parse_arguments();
  return finish(std::move(node));
}

Arguments ExpressionParser::parse_arguments() {
  Arguments arguments;
  expect_operator("(");
  while (!is_operator(")")) {
    if (token().kind == Token::Kind::kName && next_token().kind == Token::Kind::kOperator &&
        next_token().text == "=") {
      std::string name = take_name();
      advance();
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      if (!arguments.named.empty()) fail_unexpected("positional arguments before named ones");
      arguments.positional.push_back(parse_expression());
    }
    if (!skip_operator(",")) break;
  }
  expect_operator(")");
  return arguments;
}

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr input) {
  Expression node = make(Kind::kFilter);
  node.parts.push_back(std::move(input));
  node.name = take_name();
  node.function = find_filter(node.name);
  if (is_operator("(")) node.arguments = parse_arguments();
  return finish(std::move(node));
}

bool ExpressionParser::at_test_argument() const {
  switch (token().kind) {
    case Token::Kind::kName:
      return !is_name("else") && !is_name("or") && !is_name("and");
    case Token::Kind::kString:
    case Token::Kind::kNumber:
      return true;
    default:
      return is_operator("[") || is_operator("{");
  }
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr subject) {
  Expression node = make(Kind::kTest);
  expect_name("is");
  const bool negated = skip_name("not");
  node.parts.push_back(std::move(subject));
  node.name = take_name();
  node.function = find_test(node.name);
  if (is_operator("(")) {
    node.arguments = parse_arguments();
  } else if (at_test_argument()) {
    if (is_name("is")) fail_here("tests cannot be chained with is");
    const Nesting nesting(*this);
    node.arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  if (!negated) return finish(std::move(node));
  Expression outer = make(Kind::kNot);
  outer.parts.push_back(finish(std::move(node)));
  return finish(std::move(outer));
}

}  // namespace ei::jinja
