#include "ei/text/answer_parser.h"

#include <gtest/gtest.h>

namespace ei {
namespace {

// As one line: text, (thoughts), name{arguments}.
std::string shown_parts(const std::vector<AnswerPart>& parts) {
  std::string text;
  for (const AnswerPart& part : parts) {
    if (!text.empty()) text += '|';
    if (part.kind == AnswerPart::Kind::kText) text += part.text;
    if (part.kind == AnswerPart::Kind::kReasoning) text += "(" + part.text + ")";
    if (part.kind == AnswerPart::Kind::kCall) text += part.call.name + part.call.arguments;
  }
  return text;
}

// The same, whole and byte by byte.
std::string taken_apart(const AnswerFormat& format, std::string_view answer,
                        AnswerParser::Options options = {}) {
  if (options.tools.empty()) options.tools = {"f", "get.x"};
  std::string results[2];
  for (const bool is_whole : {true, false}) {
    AnswerParser parser(format, options);
    std::vector<AnswerPart> all;
    const auto add = [&](std::vector<AnswerPart> parts) {
      for (AnswerPart& part : parts) {
        if (!all.empty() && part.kind != AnswerPart::Kind::kCall && all.back().kind == part.kind) {
          all.back().text += part.text;
        } else {
          all.push_back(std::move(part));
        }
      }
    };
    if (is_whole) {
      add(parser.push(answer));
    } else {
      for (const char c : answer) add(parser.push({&c, 1}));
    }
    add(parser.finish());
    results[is_whole ? 0 : 1] = shown_parts(all);
  }
  EXPECT_EQ(results[0], results[1]) << answer;
  return results[0];
}

AnswerFormat format(ToolFormat tools, bool thinks = false) {
  if (thinks) return {.tools = tools, .think_begin = "<think>", .think_end = "</think>"};
  return {.tools = tools, .think_begin = {}, .think_end = {}};
}

TEST(AnswerFormat, IsTheTemplates) {
  const auto tools = [](std::string_view text) { return AnswerFormat::of_template(text).tools; };
  EXPECT_EQ(tools("{% if tools %}<tool_call></tool_call>"), ToolFormat::kHermes);
  EXPECT_EQ(tools("{% if tools %}[TOOL_CALLS]"), ToolFormat::kMistral);
  EXPECT_EQ(tools("{% if tools %}<|start_header_id|>"), ToolFormat::kLlama);
  EXPECT_EQ(tools("{% if tools %}[unused9][unused11]"), ToolFormat::kPangu);
  EXPECT_EQ(tools("<tool_call>"), ToolFormat::kNone);
  EXPECT_EQ(AnswerFormat::of_template("split('</think>')").think_end, "</think>");
  EXPECT_EQ(AnswerFormat::of_template("[unused9]").think_begin, "[unused16]");
}

TEST(AnswerParser, Hermes) {
  const AnswerFormat hermes = format(ToolFormat::kHermes);
  const char* call = R"(<tool_call>
{"name": "f", "arguments": {"a": "</b>"}}
</tool_call>)";
  const std::string made = R"(f{"a":"</b>"})";
  EXPECT_EQ(taken_apart(hermes, call), made);
  EXPECT_EQ(taken_apart(hermes, std::string("I look.\n") + call + "\n" + call + "\n\nDone. "),
            "I look.|" + made + "|" + made + "|Done. ");
  EXPECT_EQ(taken_apart(hermes, std::string(call) + call, {.one_call = true}), made);
  EXPECT_EQ(taken_apart(hermes, R"(<tool_call>{"name":"get.x"}</tool_call>)"), "get.x{}");
  EXPECT_EQ(taken_apart(hermes, R"(<tool_call>{"name":"f","arguments":"{\"a\":1}"}</tool_call>)"),
            R"(f{"a":1})");
  // What is no call stays as it was written.
  for (const char* text :
       {R"(a <tool_call>{"name": "f", "arguments": {</tool_call> b)", "a <tool_call>",
        R"(<tool_call>{"name":"other","arguments":{}}</tool_call>)", "x < y <tool",
        R"(<tool_call>{"name":"f","arguments":[]}</tool_call>)",
        R"(<tool_call>{"name":"f"} and</tool_call>)", "  plain  ", ""})
    EXPECT_EQ(taken_apart(hermes, text), text);
  AnswerParser none(hermes, {});
  EXPECT_EQ(shown_parts(none.push(call)), call);
}

TEST(AnswerParser, Llama) {
  const AnswerFormat llama = format(ToolFormat::kLlama);
  EXPECT_EQ(taken_apart(llama, R"({"name": "f", "parameters": {"a": [1]}})"), R"(f{"a":[1]})");
  EXPECT_EQ(taken_apart(llama, R"(<|python_tag|>{"name":"f","parameters":{}}; {"name":"f"})"),
            "f{}|f{}");
  EXPECT_EQ(taken_apart(llama, R"([f(a='x\'y', b=[1, -2.5, True], c={'k': None}), get.x()])"),
            R"(f{"a":"x'y","b":[1,-2.5,true],"c":{"k":null}}|get.x{})");
  for (const char* text : {R"({"name": "g"})", "[1, 2]", "[f(a=)]", "{", "[f(a=1) ", "A [f()]"})
    EXPECT_EQ(taken_apart(llama, text), text);
}

TEST(AnswerParser, MistralAndPangu) {
  const AnswerFormat mistral = format(ToolFormat::kMistral);
  EXPECT_EQ(
      taken_apart(mistral, R"(So:[TOOL_CALLS] [{"name":"f","arguments":{"a":1}},{"name":"f"}])"),
      R"(So:|f{"a":1}|f{})");
  EXPECT_EQ(taken_apart(mistral, R"([TOOL_CALLS]f{"a":"}"}[TOOL_CALLS]get.x[ARGS]{})"),
            R"(f{"a":"}"}|get.x{})");
  EXPECT_EQ(taken_apart(mistral, R"([{"name":"f"}])", {.in_calls = true}), "f{}");
  EXPECT_EQ(taken_apart(mistral, "[TOOL_CALLS] maybe"), "[TOOL_CALLS] maybe");
  EXPECT_EQ(taken_apart(format(ToolFormat::kPangu),
                        R"(a[unused11][{"name":"f","arguments":{}}][unused12]b)"),
            "a|f{}|b");
}

TEST(AnswerParser, Thoughts) {
  const AnswerFormat hermes = format(ToolFormat::kHermes, true);
  EXPECT_EQ(taken_apart(hermes, "<think>\nWell.\n</think>\n\nYes."), "(Well.)|Yes.");
  EXPECT_EQ(taken_apart(hermes, "Well, <b</think> Yes.", {.in_thought = true}), "(Well, <b)|Yes.");
  EXPECT_EQ(taken_apart(hermes, "<think>\n\n</think>\n\nYes."), "Yes.");
  EXPECT_EQ(taken_apart(hermes, "<think>cut </th"), "(cut </th)");
  EXPECT_EQ(taken_apart(hermes, R"(<think>a</think><tool_call>{"name":"f"}</tool_call>)"),
            "(a)|f{}");
}

}  // namespace
}  // namespace ei
