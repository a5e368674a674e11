#pragma once

#include <string_view>

#include "ei/grammar/grammar.h"
#include "ei/io/json.h"

namespace ei::grammar {

// JSON texts as rules of a grammar: any value, or those that a schema allows (JSON Schema, draft
// 2020-12, as far as docs/API.md says). They are written on one line with at most one space behind
// ':' and ',', properties in the schema's order; strings have no lone surrogates. Not every text
// that a schema allows is written, and none that it does not.
class JsonRules {
 public:
  explicit JsonRules(Grammar& grammar) : grammar_(grammar) {}

  int32_t any_value();
  int32_t any_object();
  // Throws Error naming the keyword that is not supported, or cannot be met. `schema` is read once.
  int32_t schema(const OrderedJson& schema);

 private:
  class Schema;

  struct Strings {
    int32_t character = 0;  // one, escaped or not
    int32_t string = 0;
  };
  const Strings& strings();
  int32_t number(bool is_whole);
  int32_t container(bool is_object);

  Grammar& grammar_;
  Strings strings_;
  int32_t any_ = 0, object_ = 0, array_ = 0, integer_ = 0, real_ = 0;
};

// The strings, quotes included, in which the regular expression `pattern` is found. What is
// supported: literals, ., classes of ASCII, \d \w \s and their opposites, groups, |, * + ? {m,n},
// ^ and $ around alternatives of the whole. Throws Error naming what is not.
// `character`: the rule of any character of a string.
int32_t pattern_rule(Grammar& grammar, std::string_view pattern, int32_t character);

}  // namespace ei::grammar
