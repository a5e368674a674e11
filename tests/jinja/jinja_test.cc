#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "ei/base/error.h"
#include "ei/io/json.h"
#include "ei/jinja/template.h"

namespace ei {
namespace {

using ::testing::HasSubstr;

std::string read(const std::string& name) {
  std::ifstream file(EI_SOURCE_DIR "/tests/jinja/" + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

jinja::Options options() {
  jinja::Options options;
  options.strftime_now = [](std::string_view format) { return "<" + std::string(format) + ">"; };
  return options;
}

std::string render(std::string_view source, const OrderedJson& variables = OrderedJson::object(),
                   const jinja::Options& how = options()) {
  return jinja::Template(source, "test.jinja").render(variables, how);
}

std::string error_of(std::string_view source, const OrderedJson& variables = OrderedJson::object(),
                     const jinja::Options& how = options()) {
  try {
    return "no error but: " + render(source, variables, how);
  } catch (const Error& error) {
    return error.what();
  }
}

// The oracle is Python's jinja2 (tools/make_jinja_cases.py): the text must be the same, and where
// Python raises an exception there must be an error.
void expect_case(const OrderedJson& c, std::string_view source, const OrderedJson& variables) {
  SCOPED_TRACE(c.dump());
  if (c.contains("error")) {
    EXPECT_THROW(render(source, variables), Error);
    return;
  }
  try {
    EXPECT_EQ(render(source, variables), c["text"].get<std::string>());
  } catch (const Error& error) {
    ADD_FAILURE() << error.what();
  }
}

TEST(Jinja, RendersSnippetsAsPythonDoes) {
  const auto data = OrderedJson::parse(read("data/snippets.json"));
  ASSERT_GT(data["cases"].size(), 400u);
  for (const auto& c : data["cases"])
    expect_case(c, c["template"].get<std::string>(), data["variables"]);
}

TEST(Jinja, RendersRandomTemplatesAsPythonDoes) {
  const auto data = OrderedJson::parse(read("data/random.json"));
  ASSERT_GT(data["cases"].size(), 1000u);
  for (const auto& c : data["cases"])
    expect_case(c, c["template"].get<std::string>(), data["variables"]);
}

TEST(Jinja, RendersChatTemplatesAsPythonDoes) {
  const auto data = OrderedJson::parse(read("data/chat.json"));
  ASSERT_GT(data["cases"].size(), 500u);
  for (const auto& c : data["cases"])
    expect_case(c, read("templates/" + c["template"].get<std::string>() + ".jinja"),
                c["variables"]);
}

// The shortest prompts of checkpoints that people know.
TEST(Jinja, RendersKnownPrompts) {
  const OrderedJson hi = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                          {"add_generation_prompt", true},
                          {"bos_token", "<s>"}};
  EXPECT_EQ(render(read("templates/qwen25.jinja"), hi),
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render(read("templates/openpangu.jinja"), hi),
            "[unused9]系统：[unused10][unused9]用户：Hi[unused10][unused9]助手：");
  EXPECT_EQ(render(read("templates/mistral.jinja"), hi), "<s>[INST] Hi[/INST]");
  EXPECT_EQ(render(read("templates/needle.jinja"), hi), "<s><|user|>Hi<|assistant|>");
}

TEST(Jinja, NamesTemplateAndLine) {
  EXPECT_THAT(error_of("a\nb\n{{ 'x' + 1 }}"), HasSubstr("test.jinja:3: unsupported operand"));
  EXPECT_THAT(error_of("\n{% if %}"), HasSubstr("test.jinja:2: expected an expression"));
  EXPECT_THAT(error_of("\n\n{{ 'x"), HasSubstr("test.jinja:3: "));
  EXPECT_THAT(error_of("\n{{ m.x.y }}", {{"m", {{"a", 1}}}}),
              HasSubstr("test.jinja:2: 'dict object' has no attribute 'x'"));
  EXPECT_THAT(error_of("{{ nothing.x }}"), HasSubstr("'nothing' is undefined"));
  EXPECT_THAT(error_of("{{ l.append(1) }}", {{"l", {1}}}), HasSubstr("may not change values"));
  EXPECT_THAT(error_of("{{ 9223372036854775807 + 1 }}"), HasSubstr("64-bit"));
  EXPECT_THAT(error_of("{{ 9223372036854775808 }}"), HasSubstr("64-bit"));
  EXPECT_THAT(error_of("{{ n }}", {{"n", UINT64_MAX}}), HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(error_of("{% include 'x' %}"), HasSubstr("tag 'include'"));
  EXPECT_THAT(error_of("{% for i in [] recursive %}{% endfor %}"), HasSubstr("recursive"));
  EXPECT_THAT(error_of("\xFF"), HasSubstr("not UTF-8"));
  EXPECT_THAT(error_of("{{ s }}", {{"s", "\xFF"}}), HasSubstr("not UTF-8"));
}

TEST(Jinja, PassesTheMessageOfRaiseExceptionOn) {
  EXPECT_EQ(
      error_of("{{ raise_exception('Roles must alternate, not ' ~ role) }}", {{"role", "cook"}}),
      "test.jinja:1: Roles must alternate, not cook");
}

TEST(Jinja, HasNoClockUnlessGiven) {
  const std::string source =
      "{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}";
  EXPECT_EQ(render(source), "<%d %b %Y>");
  EXPECT_EQ(render(source, OrderedJson::object(), {}), "26 Jul 2024");
}

// Each of these would take hours or gigabytes. They must end, soon, in an error about a limit.
TEST(Jinja, StopsAtItsLimits) {
  const std::vector<std::string> greedy = {
      "{{ 'x' * 1000000000000 }}",
      "{{ [1] * 1000000000000 }}",
      "{{ ('x' * 1000000) * 1000000 }}",
      "{{ range(1000000000) }}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}"
      "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}"
      "{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}"
      "{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}"
      "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(50) %}"
      "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(50) %}"
      "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s == [ns.s, ns.s] }}{{ ns.s|tojson }}",
      "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
      "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
      "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}",
      "{{ 'x'|indent(1000000000000) }}",
      "{{ [[[1]]]|tojson(indent=1000000000) }}",
      "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
      "{{ ('x' * 1000000)|list|join('y' * 1000000) }}",
      "{% set s = 'x' * 10000000 %}{% for i in range(10000) %}{{ s.find('y') }}{% endfor %}",
      "{% set s = 'x' * 10000000 %}{% for i in range(10000) %}{{ s|length }}{% endfor %}",
      "{% set s = 'x' * 10000000 %}{% set t = s ~ '' %}{% for i in range(10000) %}"
      "{{ s == t }}{{ s < t }}{% endfor %}",
      "{% set l = range(100000)|list %}{% for i in l %}{{ -1 in l }}{% endfor %}",
      "{% set s = 'x ' * 10000000 %}{{ s.split() }}",
  };
  for (const std::string& source : greedy) {
    SCOPED_TRACE(source);
    EXPECT_THAT(error_of(source), Not(HasSubstr("no error")));
  }
}

TEST(Jinja, HasTheLimitsItIsGiven) {
  jinja::Options tight;
  tight.limits.max_steps = 100;
  EXPECT_THAT(error_of("{% for i in range(1000) %}{% endfor %}", OrderedJson::object(), tight),
              HasSubstr("more than 100 steps"));
  tight.limits = {};
  tight.limits.max_output_bytes = 10;
  EXPECT_EQ(render("0123456789", OrderedJson::object(), tight), "0123456789");
  EXPECT_THAT(error_of("{{ '0123456789' }}x", OrderedJson::object(), tight),
              HasSubstr("longer than 10 bytes"));
  tight.limits = {};
  tight.limits.max_memory_bytes = 10'000;
  EXPECT_THAT(error_of("{{ 'x' * 10000 }}", OrderedJson::object(), tight),
              HasSubstr("more than 10000 bytes"));
  EXPECT_THAT(error_of("x", {{"s", std::string(10'000, 'x')}}, tight),
              HasSubstr("more than 10000 bytes"));
  // Only what is alive at one time counts.
  EXPECT_EQ(render("{% for i in range(20) %}{% set s = 'x' * 1000 %}{% endfor %}",
                   OrderedJson::object(), tight),
            "");
  tight.limits = {};
  tight.limits.max_depth = 20;
  EXPECT_THAT(error_of("{% macro m(n) %}{{ m(n - 1) if n }}{% endmacro %}{{ m(10) }}",
                       OrderedJson::object(), tight),
              HasSubstr("deeper than 20 levels"));
}

TEST(Jinja, RefusesDeepTemplates) {
  const auto times = [](std::string_view text, size_t n) {
    std::string repeated;
    for (size_t i = 0; i < n; ++i) repeated += text;
    return repeated;
  };
  for (const size_t n : {200, 20'000}) {
    for (const auto& [open, close] :
         std::vector<std::pair<std::string, std::string>>{{"(", ")"},
                                                          {"[", "]"},
                                                          {"{1:", "}"},
                                                          {"-", ""},
                                                          {"not ", ""},
                                                          {"f(", ")"},
                                                          {"a[", "]"},
                                                          {"1 if 1 else ", ""},
                                                          {"1 is in ", ""}}) {
      SCOPED_TRACE(open);
      EXPECT_THAT(error_of("{{ " + times(open, n) + "1" + times(close, n) + " }}"),
                  HasSubstr("levels"));
    }
    for (const std::string step : {"+ 1", ".a", "|int", "[0]", "()", "* 1", "and 1"}) {
      SCOPED_TRACE(step);
      EXPECT_THAT(error_of("{{ 1 " + times(step + " ", n) + "}}"), HasSubstr("levels"));
    }
    EXPECT_THAT(error_of(times("{% if 1 %}", n) + times("{% endif %}", n)), HasSubstr("levels"));
    EXPECT_THAT(error_of("{% set " + times("(", n) + "a" + times(",)", n) + " = 1 %}"),
                HasSubstr("levels"));
  }
  OrderedJson deep = 1;
  for (int i = 0; i < 200; ++i) deep = OrderedJson::array({std::move(deep)});
  EXPECT_THAT(error_of("x", {{"deep", deep}}), HasSubstr("levels"));
  EXPECT_EQ(render("{{ " + times("(", 50) + "1" + times(")", 50) + " }}"), "1");
  EXPECT_EQ(render("{{ 1 " + times("+ 1 ", 100) + "}}"), "101");
}

// Nothing of these leaks: values may refer to each other in circles.
TEST(Jinja, FreesCircles) {
  EXPECT_EQ(render("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = [b, a] %}"
                   "{% macro m() %}{{ a.b is defined }}{% endmacro %}{% set a.m = m %}"
                   "{% for x in [a] if a %}{% set a.loop = loop %}{% endfor %}"
                   "{{ a.m() }}{{ a.loop.index }}"),
            "True1");
}

TEST(Jinja, RendersInSeveralThreads) {
  const jinja::Template shared("{% for i in l %}{{ 'a' ~ i }}{% endfor %}", "shared");
  std::vector<std::string> texts(4);
  std::vector<std::thread> threads;
  for (auto& text : texts) threads.emplace_back([&] { text = shared.render({{"l", {1, 2, 3}}}); });
  for (auto& thread : threads) thread.join();
  for (const auto& text : texts) EXPECT_EQ(text, "a1a2a3");
}

}  // namespace
}  // namespace ei
