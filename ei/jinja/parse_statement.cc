#include <algorithm>
#include <initializer_list>

#include "ei/jinja/parser.h"

namespace ei::jinja {

class StatementParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body parse() && {
    Body body = parse_body({});
    if (token().kind != Token::Kind::kEnd) fail_unexpected("the end of the template");
    return body;
  }

 private:
  Statement make_statement(Statement::Kind kind) const {
    Statement statement;
    statement.kind = kind;
    statement.line = token().line;
    return statement;
  }

  // Up to a tag that begins with one of `ends`, of which the name is the next token. Without ends,
  // up to the end of the template.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    Body body;
    while (token().kind != Token::Kind::kEnd) {
      Statement statement = make_statement(Statement::Kind::kText);
      if (token().kind == Token::Kind::kData) {
        statement.text = token().text;
        advance();
      } else if (token().kind == Token::Kind::kPrintBegin) {
        advance();
        statement.kind = Statement::Kind::kPrint;
        statement.expressions.push_back(parse_tuple(/*with_condition=*/true));
        expect(Token::Kind::kPrintEnd, "'}}'");
      } else {
        expect(Token::Kind::kBlockBegin, "'{%'");
        if (std::any_of(ends.begin(), ends.end(), [&](auto end) { return is_name(end); }))
          return body;
        statement = parse_statement();
        expect_block_end();
      }
      body.push_back(std::move(statement));
    }
    if (ends.size() > 0) fail_unexpected("'" + std::string(*ends.begin()) + "'");
    return body;
  }

  // What is between a tag and its end tag; leaves the end tag's name behind.
  Body parse_block(std::string_view end) {
    skip_operator(":");
    expect_block_end();
    Body body = parse_body({end});
    expect_name(end);
    return body;
  }

  void expect_block_end() { expect(Token::Kind::kBlockEnd, "'%}'"); }

  Statement parse_statement() {
    const std::string tag = token().kind == Token::Kind::kName ? take_name() : "";
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "break" || tag == "continue") return parse_jump(tag);
    if (tag == "generation") {
      Statement statement = make_statement(Statement::Kind::kScope);
      const int loops = std::exchange(loops_, 0);
      statement.bodies.push_back(parse_block("endgeneration"));
      loops_ = loops;
      return statement;
    }
    if (tag.empty()) fail_unexpected("the name of a tag");
    fail_here(fmt::format("unknown or misplaced tag '{}'", tag));
  }

  Statement parse_if() {
    Statement statement = make_statement(Statement::Kind::kIf);
    const auto condition = [&] {
      statement.expressions.push_back(parse_tuple(/*with_condition=*/false));
      skip_operator(":");
      expect_block_end();
      statement.bodies.push_back(parse_body({"endif", "elif", "else"}));
    };
    condition();
    while (skip_name("elif")) condition();
    if (skip_name("else"))
      statement.bodies.push_back(parse_block("endif"));
    else
      expect_name("endif");
    return statement;
  }

  Statement parse_for() {
    Statement statement = make_statement(Statement::Kind::kFor);
    statement.targets.push_back(parse_target());
    if (assigns(statement.targets[0], "loop")) fail_here("'loop' is the loop's own variable");
    expect_name("in");
    statement.expressions.push_back(parse_tuple(/*with_condition=*/false));
    if (skip_name("if")) statement.expressions.push_back(parse_expression());
    skip_operator(":");
    expect_block_end();
    ++loops_;
    statement.bodies.push_back(parse_body({"endfor", "else"}));
    --loops_;
    if (skip_name("else"))
      statement.bodies.push_back(parse_block("endfor"));
    else
      expect_name("endfor");
    return statement;
  }

  Statement parse_jump(std::string_view tag) {
    if (loops_ == 0) fail_here(fmt::format("'{}' outside of a loop", tag));
    return make_statement(tag == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
  }

  static bool assigns(const Target& target, std::string_view name) {
    return target.is_tuple ? std::any_of(target.parts.begin(), target.parts.end(),
                                         [&](const Target& part) { return assigns(part, name); })
                           : target.name == name;
  }

  // a    a, b    (a, (b, c))    and for set: space.a
  Target parse_target(bool with_attribute = false) {
    Target tuple;
    do {
      if (is_name("in") || is_operator(")")) break;
      tuple.parts.push_back(parse_single_target(with_attribute));
      if (tuple.parts.size() == 1 && !is_operator(",")) {
        Target single = std::move(tuple.parts[0]);
        return single;
      }
    } while (skip_operator(","));
    if (tuple.parts.empty()) fail_unexpected("a name to assign to");
    tuple.is_tuple = true;
    return tuple;
  }

  Target parse_single_target(bool with_attribute) {
    const Nesting nesting(*this);
    Target target;
    if (skip_operator("(")) {
      target = parse_target();
      expect_operator(")");
      return target;
    }
    target.name = take_name();
    for (const char* constant : {"true", "false", "none", "True", "False", "None"})
      if (target.name == constant) fail_here(fmt::format("can't assign to '{}'", constant));
    if (with_attribute && skip_operator(".")) target.attribute = take_name();
    return target;
  }

  Statement parse_set() {
    Statement statement = make_statement(Statement::Kind::kSet);
    statement.targets.push_back(parse_target(/*with_attribute=*/true));
    if (skip_operator("=")) {
      statement.expressions.push_back(parse_tuple(/*with_condition=*/true));
      return statement;
    }
    statement.kind = Statement::Kind::kSetBlock;
    statement.bodies.push_back(parse_block("endset"));
    return statement;
  }

  std::vector<Parameter> parse_parameters() {
    std::vector<Parameter> parameters;
    expect_operator("(");
    while (!is_operator(")")) {
      if (!parameters.empty()) expect_operator(",");
      Parameter parameter;
      parameter.name = take_name();
      if (skip_operator("="))
        parameter.fallback = parse_expression();
      else if (!parameters.empty() && parameters.back().fallback)
        fail_here("non-default argument follows default argument");
      for (const Parameter& other : parameters)
        if (other.name == parameter.name) fail_here("two parameters of the same name");
      parameters.push_back(std::move(parameter));
    }
    expect_operator(")");
    return parameters;
  }

  Statement parse_macro() {
    Statement statement = make_statement(Statement::Kind::kMacro);
    auto macro = std::make_unique<MacroDefinition>();
    macro->name = take_name();
    macro->parameters = parse_parameters();
    const int loops = std::exchange(loops_, 0);
    macro->body = parse_block("endmacro");
    loops_ = loops;
    statement.macro = std::move(macro);
    return statement;
  }

  int loops_ = 0;  // that break and continue can leave
};

Body parse_template(std::string_view source) { return StatementParser(tokenize(source)).parse(); }

}  // namespace ei::jinja
