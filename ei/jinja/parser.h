#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ei/jinja/ast.h"
#include "ei/jinja/lexer.h"

namespace ei::jinja {

// Reads the tokens one by one and builds expressions. The grammar is Jinja's: Python's, with
// filters and tests bound tighter than any binary operator.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  const Token& token() const { return tokens_[at_]; }
  const Token& next_token() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void advance() { ++at_; }
  bool is_operator(std::string_view op) const { return is(Token::Kind::kOperator, op); }
  bool is_name(std::string_view name) const { return is(Token::Kind::kName, name); }
  bool skip_operator(std::string_view op) { return skip(Token::Kind::kOperator, op); }
  bool skip_name(std::string_view name) { return skip(Token::Kind::kName, name); }
  void expect_operator(std::string_view op);
  void expect_name(std::string_view name);
  void expect(Token::Kind kind, std::string_view what);
  std::string take_name();
  [[noreturn]] void fail_here(const std::string& what) const;
  [[noreturn]] void fail_unexpected(std::string_view wanted) const;

  ExpressionPtr parse_expression();                // with "a if b else c"
  ExpressionPtr parse_or();                        // without
  ExpressionPtr parse_tuple(bool with_condition);  // "a, b" without parentheses too
  Expression make(Expression::Kind kind) const;
  ExpressionPtr finish(Expression node) const;

  // Guards the recursion of the parser itself.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.nesting_; }

   private:
    ExpressionParser& parser_;
  };

 private:
  bool is(Token::Kind kind, std::string_view text) const {
    return token().kind == kind && token().text == text;
  }
  bool skip(Token::Kind kind, std::string_view text) {
    const bool found = is(kind, text);
    if (found) advance();
    return found;
  }

  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_call(ExpressionPtr node);
  ExpressionPtr parse_filter(ExpressionPtr input);
  ExpressionPtr parse_test(ExpressionPtr subject);
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  Arguments parse_arguments();
  bool at_tuple_end() const;
  bool at_test_argument() const;
  ExpressionPtr binary(Expression::Kind kind, ExpressionPtr a, ExpressionPtr b,
                       Operator operation = {}) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

// Throws SyntaxError.
Body parse_template(std::string_view source);

}  // namespace ei::jinja
