#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "ei/base/error.h"
#include "ei/grammar/json_schema.h"
#include "ei/grammar/matcher.h"

namespace ei::grammar {
namespace {

using ::testing::HasSubstr;

Grammar grammar_of(const OrderedJson& schema) {
  Grammar grammar;
  grammar.start = JsonRules(grammar).schema(schema);
  return grammar;
}

std::shared_ptr<TokenGrammar> compiled(std::string_view schema,
                                       std::shared_ptr<const TokenTrie> tokens) {
  return std::make_shared<TokenGrammar>(grammar_of(OrderedJson::parse(schema)), std::move(tokens));
}

std::shared_ptr<const TokenTrie> bytes_alone() {
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  bytes.emplace_back();
  return std::make_shared<TokenTrie>(bytes, std::vector<int32_t>{256});
}

bool takes(std::string_view schema, std::string_view text) {
  Matcher matcher(compiled(schema, bytes_alone()));
  return matcher.accept(text) && matcher.can_end();
}

struct Case {
  const char* schema;
  std::vector<const char*> good, bad;
};

TEST(JsonSchema, TakesWhatItAllowsAndNothingElse) {
  const Case cases[] = {
      {"true",
       {"null", "-0", "1.5e-3", R"("a\u00e9\n\"")", R"([1, [],{"a":{}}])", R"({"a": 1,"b":[]})",
        "\"\xC3\xA9\xF0\x9F\x98\x80\""},
       {"", "nul", "01", "1.", "\"\n\"", R"("\ud800")", "[1,]", "{\"a\"}", "\"\xC3\"", "[1  ,2]"}},
      {R"({"type":"integer"})", {"0", "-12"}, {"1.0", "-", "00"}},
      {R"({"type":["string","null"],"maxLength":2,"minLength":1})",
       {"null", R"("ab")", "\"\xC3\xA9\xC3\xA9\"", R"("\n\u0041")"},
       {R"("")", R"("abc")", "1"}},
      {R"({"enum":["a\"b",1,null,[1,{"x":2}]]})",
       {R"("a\"b")", "1", "null", R"([1,{"x":2}])"},
       {"2", R"("a")"}},
      {R"({"const":{"a":[]}})", {R"({"a":[]})"}, {"{}"}},
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"boolean"},"c":{}},
           "required":["b"],"additionalProperties":false})",
       {R"({"b":true})", R"({"a":1,"b":false})", R"({"a":1, "b": true,"c":[null]})",
        R"({"b":true,"c":"x"})"},
       {"{}", R"({"a":1})", R"({"b":1})", R"({"b":true,"a":1})", R"({"b":true,})",
        R"({"b":true,"d":1})"}},
      {R"({"properties":{"ab":{"const":1},"é":{}},"additionalProperties":{"type":"string"}})",
       {"{}", R"({"ab":1})", R"({"a":"x"})", R"({"ab":1,"abc":"","":"y"})"},
       {R"({"ab":"x"})", R"({"a":1})", R"({"ab":1,"ab":"x"})", R"({"\u0061b":"x"})"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1, 2,3]"},
       {"[]", "[1]", "[1,2,3,4]", "[1,2,]"}},
      {R"({"items":{"type":"null"},"maxItems":0})", {"[]"}, {"[null]"}},
      {R"({"items":false})", {"[]"}, {"[null]", "[", "[[]]"}},
      {R"({"anyOf":[false,{"type":"null"}]})", {"null"}, {"0"}},
      {R"({"type":"object","properties":{}})", {"{}", R"({"a":1})"}, {"[]"}},
      {R"({"$defs":{"t":{"type":"object","properties":{"v":{"type":"integer"},
           "n":{"anyOf":[{"$ref":"#/$defs/t"},{"type":"null"}]}},"required":["v","n"]}},
           "$ref":"#/$defs/t"})",
       {R"({"v":1,"n":null})", R"({"v":1,"n":{"v":2,"n":{"v":3,"n":null}}})"},
       {R"({"v":1})", R"({"v":1,"n":{}})"}},
      {R"_({"pattern":"^[a-c]{2,3}-\\d+$"})_",
       {R"("ab-1")", R"("cca-007")"},
       {R"("a-1")", R"("ab-")"}},
      {R"_({"pattern":"x|^(yes|no)?$"})_",
       {R"("")", R"("yes")", R"("axb")"},
       {R"("y")", R"("noo")"}},
      {R"_({"pattern":"^[^a\"]\\.$"})_",
       {R"("b.")", R"("\\.")", "\"\xC3\xA9.\""},
       {R"("a.")", R"("\".")"}},
      {R"_({"pattern":"^(a*)*$"})_", {R"("")", R"("aaa")"}, {R"("b")"}},
  };
  for (const Case& c : cases) {
    for (const char* text : c.good) EXPECT_TRUE(takes(c.schema, text)) << c.schema << " " << text;
    for (const char* text : c.bad) EXPECT_FALSE(takes(c.schema, text)) << c.schema << " " << text;
  }
}

TEST(JsonSchema, NamesWhatItCannotDo) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"oneOf":[{}]})", "oneOf"},
      {R"({"type":"integer","minimum":1})", "\"minimum\" is not supported"},
      {R"({"properties":{"a":{"not":{}}}})", "not"},
      {R"({"$ref":"#"})", "$ref"},
      {R"({"$ref":"other.json"})", "$ref"},
      {R"({"anyOf":[{"$ref":"#"},{}]})", "$ref"},
      {R"({"anyOf":[{}],"type":"string"})", "anyOf"},
      {R"({"pattern":"a","maxLength":3})", "maxLength"},
      {R"_({"pattern":"(?=a)"})_", "pattern"},
      {R"_({"pattern":"(a"})_", "pattern"},
      {R"_({"pattern":"a{2000}"})_", "pattern"},
      {R"_({"pattern":"((a{1000}){1000}){1000}"})_", "too large"},
      {R"_({"pattern":"((){1000}){1000}"})_", "too large"},
      {R"({"type":"text"})", "\"type\" is \"text\", expected"},
      {R"({"type":[1]})", "\"type\" is number, expected"},
      {R"({"type":"string","enum":[1]})", "enum"},
      {R"({"minItems":3,"maxItems":2})", "minItems"},
      {R"({"maxLength":100000})", "maxLength"},
      {"3", "number"},
  };
  for (const auto& [schema, named] : cases) {
    try {
      grammar_of(OrderedJson::parse(schema));
      ADD_FAILURE() << schema;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(named)) << schema;
    }
  }
}

// Words of up to 12 letters, with marks and digits in front and behind, and all single bytes.
std::shared_ptr<const TokenTrie> vocabulary(size_t n) {
  std::mt19937 random(7);
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  const std::vector<std::string> marks = {"\"", "\":", "\", \"", "{\"",      "\"}",
                                          "]}", ", ",  " ",      ": ",       "[",
                                          "}",  "12",  "\\n",    "\xC3\xA9", ".5"};
  while (tokens.size() < n - 1) {
    std::string token = random() % 2 != 0 ? " " : "";
    if (random() % 4 == 0) token += marks[random() % marks.size()];
    for (size_t k = random() % 12; k > 0; --k) token += static_cast<char>('a' + random() % 26);
    if (random() % 8 == 0) token += marks[random() % marks.size()];
    if (!token.empty()) tokens.push_back(std::move(token));
  }
  tokens.emplace_back();
  return std::make_shared<TokenTrie>(tokens, std::vector<int32_t>{static_cast<int32_t>(n - 1)});
}

constexpr const char* kPerson = R"({"type":"object","properties":{"name":{"type":"string"},
  "age":{"type":"integer"},"tags":{"type":"array","items":{"enum":["red","green","blue"]}},
  "home":{"anyOf":[{"type":"null"},{"type":"object","properties":{"street":{"type":"string"},
  "zip":{"pattern":"^[0-9]{5}$"}},"required":["street","zip"],"additionalProperties":false}]}},
  "required":["name","age","tags","home"],"additionalProperties":false})";

bool may_come(std::span<const uint32_t> allowed, size_t id) {
  return (allowed[id / 32] >> (id % 32) & 1) != 0;
}

// A token that may come: of all, or mostly one that gets on.
int32_t drawn(std::span<const uint32_t> allowed, std::mt19937& random) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < allowed.size() * 32; ++i)
    if (may_come(allowed, i)) ids.push_back(static_cast<int32_t>(i));
  if (ids.empty()) return -1;
  // Closing brackets and quotes, so that it comes to an end.
  for (const char c : {'}', ']', '"'})
    if (random() % 3 == 0 && std::ranges::find(ids, int32_t(c)) != ids.end()) return c;
  return ids[random() % ids.size()];
}

TEST(TokenGrammar, WhatMayComeIsWhatIsTaken) {
  const auto tokens = vocabulary(3000);
  std::mt19937 random(1);
  for (const char* schema : {kPerson, "true", R"({"type":"object"})", R"({"type":"number"})"}) {
    const auto grammar = compiled(schema, tokens);
    for (int k = 0; k < 8; ++k) {
      Matcher matcher(grammar);
      std::string text;
      for (int n = 0; n < 400 && !matcher.must_end(); ++n) {
        const std::vector<uint32_t> allowed(matcher.allowed().begin(), matcher.allowed().end());
        ASSERT_EQ(may_come(allowed, tokens->n_tokens() - 1), matcher.can_end()) << text;
        if (n % 40 == 0) {
          for (size_t i = 0; i + 1 < tokens->n_tokens(); ++i) {
            Matcher other = matcher;
            ASSERT_EQ(other.accept(static_cast<int32_t>(i)), may_come(allowed, i))
                << text << "|" << tokens->bytes(static_cast<int32_t>(i));
          }
        }
        const int32_t token = drawn(allowed, random);
        ASSERT_GE(token, 0) << text;
        if (token + 1 == static_cast<int32_t>(tokens->n_tokens())) {
          ASSERT_TRUE(matcher.can_end());
          break;
        }
        text += tokens->bytes(token);
        ASSERT_TRUE(matcher.accept(token));
      }
      if (!matcher.can_end()) continue;
      EXPECT_FALSE(OrderedJson::parse(text, nullptr, false).is_discarded()) << text;
    }
  }
}

TEST(TokenGrammar, AFullCacheIsBegunAgain) {
  const auto tokens = bytes_alone();
  const auto grammar = compiled("true", tokens);
  Matcher old(grammar);
  ASSERT_TRUE(old.accept("[[\"x"));
  std::mt19937 random(3);
  for (int k = 0; k < 40; ++k) {
    Matcher matcher(grammar);
    for (int n = 0; n < 60; ++n) {
      matcher.allowed();
      ASSERT_TRUE(matcher.accept(random() % 2 != 0 ? "[" : "{\"a\":"));
    }
  }
  EXPECT_FALSE(old.allowed().empty());
  EXPECT_TRUE(old.accept("\"]]"));
  EXPECT_TRUE(old.can_end() && old.must_end());
}

TEST(TokenGrammar, WhatCannotEndIsNotBegun) {
  const auto tokens = bytes_alone();
  for (const char* schema :
       {R"({"properties":{"n":{"$ref":"#"}},"required":["n"]})", R"_({"pattern":"^[^\\d\\D]$"})_",
        R"({"items":{"$ref":"#"},"minItems":1})", R"({"items":false,"minItems":1})",
        R"({"required":["a"],"additionalProperties":false})", "false"}) {
    try {
      compiled(schema, tokens);
      ADD_FAILURE() << schema;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("no text")) << schema;
    }
  }
  constexpr const char* kOne = R"_({"pattern":"^a[^\\d\\D]$|^b$"})_";
  EXPECT_TRUE(takes(kOne, R"("b")"));
  Matcher matcher(compiled(kOne, tokens));
  EXPECT_FALSE(matcher.accept("\"a"));
}

TEST(TokenGrammar, NestingHasAnEndAtWhichTextsStillClose) {
  for (const char* schema : {"true", R"({"type":"array","items":{"$ref":"#"}})"}) {
    const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
    EXPECT_TRUE(takes(schema, nested(60)));
    EXPECT_FALSE(takes(schema, nested(100)));
    Matcher matcher(compiled(schema, bytes_alone()));
    size_t n = 0;
    while (n < 100 && may_come(matcher.allowed(), '[') && matcher.accept("[")) ++n;
    EXPECT_LT(n, 100U);
    EXPECT_TRUE(matcher.accept(std::string(n, ']'))) << n;
    EXPECT_TRUE(matcher.must_end());
  }
  // Three levels lie between one place where it may end and the next: the last is not begun where
  // the limit lies between them.
  Matcher matcher(compiled(R"({"$ref":"#/$defs/t","$defs":{"t":{"anyOf":[{"type":"null"},
      {"type":"object","required":["a"],"additionalProperties":false,"properties":{"a":
        {"type":"array","minItems":1,"maxItems":1,"items":
          {"type":"object","required":["b"],"additionalProperties":false,"properties":
            {"b":{"$ref":"#/$defs/t"}}}}}}]}}})",
                           bytes_alone()));
  std::string close;
  for (; may_come(matcher.allowed(), '{'); close += "}]}")
    ASSERT_TRUE(matcher.accept(R"({"a":[{"b":)")) << close.size();
  EXPECT_GT(close.size(), 3U * 15);
  EXPECT_TRUE(matcher.accept("null" + close) && matcher.must_end());
  OrderedJson chain = {{"$ref", "#/$defs/0"}, {"$defs", OrderedJson::object()}};
  for (int i = 0; i < 1000; ++i)
    chain["$defs"][std::to_string(i)] = {{"$ref", "#/$defs/" + std::to_string(i + 1)}};
  chain["$defs"]["1000"] = true;
  EXPECT_THROW(grammar_of(chain), Error);
}

// Whether an 'a' was 200 letters ago, for each of them: every word leads to another state.
TEST(TokenGrammar, PatternsOfManyStatesAreBounded) {
  std::vector<std::string> words = {"a", "b"};
  for (size_t i = 0; words.size() < 60'000; ++i)
    for (const char c : {'a', 'b'}) words.push_back(words[i] + c);
  const auto tokens = std::make_shared<TokenTrie>(words, std::vector<int32_t>{});
  Matcher matcher(compiled(R"_({"pattern":"^(a|b)*a(a|b){200}$"})_", tokens));
  ASSERT_TRUE(matcher.accept("\"abba"));
  for (int n = 0; n < 3; ++n) {
    const std::vector<uint32_t> allowed(matcher.allowed().begin(), matcher.allowed().end());
    int32_t last = -1;
    int64_t n_allowed = 0;
    for (int32_t id = 0; id < static_cast<int32_t>(words.size()); ++id)
      if (may_come(allowed, static_cast<size_t>(id))) last = id, ++n_allowed;
    EXPECT_GT(n_allowed, 500);
    EXPECT_LT(n_allowed, 30'000);  // others may come as well, but were not looked at
    ASSERT_TRUE(matcher.accept(last));
  }
}

// Schemas that a text can be read by in ever more ways: what would lead to too many may not come.
TEST(TokenGrammar, AmbiguityIsBounded) {
  const auto tokens = bytes_alone();
  constexpr const char* kTwice =
      R"({"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"array","items":{"$ref":"#"}}]})";
  Matcher matcher(compiled(kTwice, tokens));
  size_t n = 0;
  while (n < 64 && may_come(matcher.allowed(), '[') && matcher.accept("[")) ++n;
  EXPECT_GT(n, 5U);
  EXPECT_LT(n, 20U);  // there are 2^n ways
  EXPECT_TRUE(matcher.accept(std::string(n, ']')));

  // Where nothing is left, it says why, each time.
  OrderedJson object = {{"type", "object"}};
  for (int i = 0; i < 3000; ++i) object["properties"][fmt::format("p{}", i)] = {{"type", "null"}};
  Matcher lost(compiled(object.dump(), tokens));
  for (int time = 0; time < 2; ++time)
    EXPECT_THAT([&] { lost.allowed(); },
                testing::ThrowsMessage<Error>(HasSubstr("goes on in over 2048 ways")));

  const std::string bars(3000, '|');
  EXPECT_THROW(compiled(R"_({"pattern":"^((a)_" + bars + R"_(){1000}){100}$"})_", tokens), Error);
}

}  // namespace
}  // namespace ei::grammar
