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
    if (part.kind == AnswerPart::Kind::kArguments) text += "+" + part.text;
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
        if (part.kind == AnswerPart::Kind::kArguments) {
          ASSERT_TRUE(!all.empty() && all.back().kind == AnswerPart::Kind::kCall);
          all.back().call.arguments += part.text;
        } else if (!all.empty() && part.kind != AnswerPart::Kind::kCall &&
                   all.back().kind == part.kind) {
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
  const std::string made = R"(f{"a": "</b>"})";
  EXPECT_EQ(taken_apart(hermes, call), made);
  EXPECT_EQ(taken_apart(hermes, std::string("I look.\n") + call + "\n" + call + "\n\nDone. "),
            "I look.|" + made + "|" + made + "|Done. ");
  EXPECT_EQ(taken_apart(hermes, std::string(call) + call, {.one_call = true}), made);
  EXPECT_EQ(taken_apart(hermes, R"(<tool_call>{"name":"get.x"}</tool_call>)"), "get.x{}");
  EXPECT_EQ(taken_apart(hermes, R"(<tool_call>{"name":"f","arguments":"{\"a\":1}"}</tool_call>)"),
            R"(f{"a":1})");
  EXPECT_EQ(taken_apart(hermes, R"(<tool_call>{"arguments":{"a": 1},"name":"f"}</tool_call>x)"),
            R"(f{"a":1}|x)");
  // Arguments are what is written, be they cut, twice the same key or no JSON after all.
  EXPECT_EQ(taken_apart(hermes, R"(<tool_call>{"name":"f","arguments":{"a":"</tool_call>\"{)"),
            R"(f{"a":"</tool_call>\"{)");
  EXPECT_EQ(
      taken_apart(hermes, R"(<tool_call>{"name":"f","arguments":{"a":1,"a":{}}}</tool_call>)"),
      R"(f{"a":1,"a":{}})");
  EXPECT_EQ(taken_apart(hermes, R"(a <tool_call>{"name": "f", "arguments": {1</tool_call> b)"),
            "a|f{1|b");
  // What is no call stays as it was written.
  for (const char* text :
       {R"(a <tool_call>{"name": "f", "arguments": </tool_call> b)", "a <tool_call>",
        R"(<tool_call>{"name":"other","arguments":{}}</tool_call>)", "x < y <tool",
        R"(<tool_call>{"name":"f","arguments":[]}</tool_call>)", R"(<tool_call>{"name":"f)",
        R"(<tool_call>{"name":"f"} and</tool_call>)", "  plain  ", ""})
    EXPECT_EQ(taken_apart(hermes, text), text);
  AnswerParser none(hermes, {});
  EXPECT_EQ(shown_parts(none.push(call)), call);
}

TEST(AnswerParser, ArgumentsComeAsTheyAreWritten) {
  AnswerParser parser(format(ToolFormat::kHermes), {.tools = {"f"}, .one_call = true});
  std::string shown;
  for (const char* piece : {"So:\n<tool_call>\n", R"({"name": "f", "arg)", R"(uments": {"a")",
                            ": 1", "}}\n</tool", "_call>", "and more"}) {
    EXPECT_EQ(parser.is_done(), shown.ends_with("+: 1/+}/"));
    shown += shown_parts(parser.push(piece)) + "/";
    if (std::string_view(piece).starts_with("_call")) break;
  }
  EXPECT_EQ(shown, R"(So://f{"a"/+: 1/+}//)");
  EXPECT_TRUE(parser.is_done());
  EXPECT_EQ(shown_parts(parser.push("and more")) + shown_parts(parser.finish()), "");
}

TEST(AnswerParser, AFormIsCallsOrText) {
  const auto taken = [](ToolFormat tools, std::string_view answer) {
    return taken_apart(format(tools), answer, {.is_form = true});
  };
  const char* calls = R"({"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a": "]"}}])";
  for (const ToolFormat tools : {ToolFormat::kMistral, ToolFormat::kPangu})
    EXPECT_EQ(taken(tools, std::string("[") + calls), R"(f{}|f{"a": "]"})");
  EXPECT_EQ(taken(ToolFormat::kHermes,
                  "<tool_call>\n{\"name\": \"f\", \"arguments\": "
                  "{}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", "
                  "\"arguments\": {}}\n</tool_call>"),
            "f{}|f{}");
  EXPECT_EQ(taken(ToolFormat::kLlama,
                  R"({"name": "f", "parameters": {}}; {"name": "f", "parameters": {"a": {}}})"),
            R"(f{}|f{"a": {}})");
  EXPECT_EQ(taken(ToolFormat::kPangu, R"([{"name": "f", "arguments": {}}, {"na)"), "f{}");
  // A text of the form may quote a call, or begin like one.
  for (const char* text : {R"(["<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"])",
                           R"({"name": "x", "parameters": {}})", R"("[TOOL_CALLS]f{}")", "[1]"})
    for (const ToolFormat tools : {ToolFormat::kHermes, ToolFormat::kLlama, ToolFormat::kMistral})
      EXPECT_EQ(taken(tools, text), text);
}

TEST(AnswerParser, Llama) {
  const AnswerFormat llama = format(ToolFormat::kLlama);
  EXPECT_EQ(taken_apart(llama, R"({"name": "f", "parameters": {"a": [1]}})"), R"(f{"a": [1]})");
  EXPECT_EQ(taken_apart(llama, R"(<|python_tag|>{"name":"f","parameters":{}}; {"name":"f"})"),
            "f{}|f{}");
  EXPECT_EQ(taken_apart(llama, R"([f(a='x\'y', b=[1, -2.5, True], c={'k': None}), get.x()])"),
            R"(f{"a":"x'y","b":[1,-2.5,true],"c":{"k":null}}|get.x{})");
  EXPECT_EQ(taken_apart(llama, R"([{"name":"f","parameters":{}}, {"name":"f"}])"), "f{}|f{}");
  for (const char* text : {R"({"name": "g"})", " [1, 2]", "[f(a=)]", "{", "[f(a=1) ", "A [f()]"})
    EXPECT_EQ(taken_apart(llama, text), text);
}

TEST(AnswerParser, MistralAndPangu) {
  const AnswerFormat mistral = format(ToolFormat::kMistral);
  EXPECT_EQ(
      taken_apart(mistral, R"(So:[TOOL_CALLS] [{"name":"f","arguments":{"a":1}},{"name":"f"}])"),
      R"(So:|f{"a":1}|f{})");
  EXPECT_EQ(taken_apart(mistral, R"([TOOL_CALLS]f{"a":"}"}[TOOL_CALLS]get.x[ARGS]{})"),
            R"(f{"a":"}"}|get.x{})");
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
  EXPECT_EQ(taken_apart(hermes, " \n<think>a</think>b<think>"), "(a)|b<think>");
  for (const char* text : {"It is <think>no</think> thought.", "<thin", "<thing>"})
    EXPECT_EQ(taken_apart(hermes, text), text);
  EXPECT_EQ(taken_apart(hermes, "<think></think><think>b", {}), "<think>b");
  EXPECT_EQ(taken_apart(hermes, "a</think>b<think>c", {.in_thought = true}), "(a)|b<think>c");
  EXPECT_EQ(taken_apart(format(ToolFormat::kLlama, true), R"(<think>a</think>{"name":"f"})"),
            "(a)|f{}");
  EXPECT_EQ(taken_apart(hermes, R"(<think>a</think><tool_call>{"name":"f"}</tool_call>)"),
            "(a)|f{}");
}

}  // namespace
}  // namespace ei
