#include <gtest/gtest.h>

#include "apps/server/request.h"

namespace ei::server {
namespace {

RequestDefaults with_tools(bool tools = true) {
  RequestDefaults defaults;
  defaults.tools = tools;
  return defaults;
}

// What a chat says the same with, as the parser gives it.
OrderedJson chat_messages(const char* messages) {
  return parse_chat_request(std::string(R"({"messages":)") + messages + "}", with_tools())
      .conversation.messages;
}

template <class Parse>
std::string refused(Parse parse, const std::string& body, bool tools = true) {
  try {
    parse(body, with_tools(tools));
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    return error.param;
  }
  return "";
}

TEST(AnthropicMessages, AreChats) {
  const ApiRequest got = parse_messages_request(
      R"({"max_tokens":7,"stop_sequences":["x","y"],"temperature":0.5,"stream":true,
      "system":[{"type":"text","text":"Be brief.","cache_control":{"type":"ephemeral"}}],
      "thinking":{"type":"enabled","budget_tokens":1024},
      "tool_choice":{"type":"tool","name":"f","disable_parallel_tool_use":true},
      "tools":[{"name":"f","description":"d","input_schema":{"type":"object"}}],
      "messages":[
        {"role":"user","content":"Hello"},
        {"role":"assistant","content":[{"type":"thinking","thinking":"Hm.","signature":""},
          {"type":"redacted_thinking","data":"zz"},{"type":"text","text":"I look."},
          {"type":"tool_use","id":"c1","name":"f","input":{"b":1,"a":2}},
          {"type":"tool_use","id":"c2","name":"f","input":{}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"one"},
          {"type":"tool_result","tool_use_id":"c2","is_error":true,
           "content":[{"type":"text","text":"two"}]},
          {"type":"tool_result","tool_use_id":"c3"},
          {"type":"text","text":"So?"}]}]})",
      with_tools());
  EXPECT_EQ(got.conversation.messages, chat_messages(R"([
      {"role":"system","content":[{"type":"text","text":"Be brief."}]},
      {"role":"user","content":"Hello"},
      {"role":"assistant","content":[{"type":"text","text":"I look."}],"reasoning_content":"Hm.",
       "tool_calls":[
         {"id":"c1","type":"function","function":{"name":"f","arguments":{"b":1,"a":2}}},
         {"id":"c2","type":"function","function":{"name":"f","arguments":{}}}]},
      {"role":"tool","content":"one","tool_call_id":"c1"},
      {"role":"tool","content":[{"type":"text","text":"two"}],"tool_call_id":"c2"},
      {"role":"tool","content":"","tool_call_id":"c3"},
      {"role":"user","content":[{"type":"text","text":"So?"}]}])"));
  EXPECT_EQ(got.dialect, Dialect::kMessages);
  EXPECT_EQ(got.request.max_tokens, 7);
  EXPECT_EQ(got.request.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(got.request.sampling->temperature, 0.5F);
  EXPECT_TRUE(got.stream);
  EXPECT_EQ(got.form.kind, AnswerForm::Kind::kCalls);
  EXPECT_EQ(got.form.functions[0]["parameters"], OrderedJson({{"type", "object"}}));
  EXPECT_TRUE(got.parts.one_call);
  EXPECT_EQ(got.conversation.variables["enable_thinking"], true);
  EXPECT_EQ(got.conversation.variables["tools"][0]["function"]["description"], "d");
}

TEST(AnthropicMessages, WrongOnesAreNamed) {
  const auto field = [](const std::string& messages, const std::string& more = "") {
    return refused(parse_messages_request,
                   R"({"max_tokens":7,"messages":)" + messages + more + "}");
  };
  const std::string hello = R"([{"role":"user","content":"a"}])";
  EXPECT_EQ(field(hello), "");
  EXPECT_EQ(field("[]"), "messages");
  EXPECT_EQ(field(R"([{"role":"system","content":"a"}])"), "messages[0].role");
  EXPECT_EQ(field(R"([{"role":"user"}])"), "messages[0].content");
  EXPECT_EQ(field(R"([{"role":"user","content":[{"type":"image","source":{}}]}])"),
            "messages[0].content");
  EXPECT_EQ(field(R"([{"role":"user","content":[{"type":"tool_result"}]}])"),
            "messages[0].content");
  EXPECT_EQ(
      field(
          R"([{"role":"assistant","content":[{"type":"tool_use","id":"x","name":"f","input":"{}"}]}])"),
      "messages[0].content");
  EXPECT_EQ(field(R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"}])"),
            "messages");
  EXPECT_EQ(field(hello, R"(,"tools":[{"type":"bash_20250124","name":"bash"}])"), "tools");
  EXPECT_EQ(field(hello, R"(,"tools":[{"name":"f"}])"), "tools");
  EXPECT_EQ(field(hello, R"(,"tools":[{"name":"f","input_schema":{"type":"array"}}])"), "tools");
  EXPECT_EQ(field(hello, R"(,"tool_choice":"auto")"), "tool_choice");
  EXPECT_EQ(field(hello, R"(,"tool_choice":{"type":"any"})"), "tool_choice");
  EXPECT_EQ(field(hello, R"(,"stop_sequences":"x")"), "stop_sequences");
  EXPECT_EQ(field(hello, R"(,"system":[{"type":"image"}])"), "system");
  EXPECT_EQ(field(hello, R"(,"thinking":{"type":"deep"})"), "thinking");
  EXPECT_EQ(field(hello, R"(,"output_config":{"effort":"high"})"), "output_config");
  EXPECT_EQ(refused(parse_messages_request, R"({"messages":)" + hello + "}"), "max_tokens");
  EXPECT_EQ(refused(parse_count_tokens_request, R"({"messages":)" + hello + "}"), "");
  EXPECT_EQ(refused(parse_count_tokens_request,
                    R"({"messages":[{"role":"user","content":[{"type":"tool_result",)"
                    R"("tool_use_id":"x"}]}]})",
                    /*tools=*/false),
            "messages[0].content");
}

TEST(Responses, AreChats) {
  const ApiRequest got = parse_responses_request(
      R"({"instructions":"Be brief.","max_output_tokens":7,"store":false,"top_p":0.5,
      "parallel_tool_calls":false,"text":{"format":{"type":"json_object"},"verbosity":"medium"},
      "tools":[{"type":"function","name":"f","parameters":{"type":"object"},"strict":true}],
      "input":[
        {"role":"user","content":[{"type":"input_text","text":"Hello"}]},
        {"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}]},
        {"type":"message","role":"assistant","status":"completed",
         "content":[{"type":"output_text","text":"I look.","annotations":[]}]},
        {"type":"function_call","call_id":"c1","name":"f","arguments":"{\"a\": 1}"},
        {"type":"function_call","call_id":"c2","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"c1","output":"one"},
        {"type":"function_call_output","call_id":"c2",
         "output":[{"type":"input_text","text":"two"}]},
        {"type":"message","role":"assistant","content":"Both."},
        {"type":"message","role":"assistant","content":"Really."},
        {"type":"reasoning","summary":[{"type":"summary_text","text":"Ah."}]},
        {"type":"function_call","call_id":"c3","name":"f","arguments":"{}"},
        {"role":"developer","content":"Go on."}]})",
      with_tools());
  EXPECT_EQ(got.conversation.messages, chat_messages(R"([
      {"role":"system","content":"Be brief."},
      {"role":"user","content":[{"type":"text","text":"Hello"}]},
      {"role":"assistant","content":[{"type":"text","text":"I look."}],"reasoning_content":"Hm.",
       "tool_calls":[
         {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},
         {"id":"c2","type":"function","function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","content":"one","tool_call_id":"c1"},
      {"role":"tool","content":[{"type":"text","text":"two"}],"tool_call_id":"c2"},
      {"role":"assistant","content":"Both."},
      {"role":"assistant","content":"Really."},
      {"role":"assistant","content":null,"reasoning_content":"Ah.","tool_calls":[
         {"id":"c3","type":"function","function":{"name":"f","arguments":"{}"}}]},
      {"role":"system","content":"Go on."}])"));
  EXPECT_EQ(got.dialect, Dialect::kResponses);
  EXPECT_EQ(got.request.max_tokens, 7);
  EXPECT_EQ(got.form.kind, AnswerForm::Kind::kObject);
  EXPECT_EQ(got.form.functions.size(), 1U);
  EXPECT_TRUE(got.parts.one_call);
  EXPECT_EQ(got.echoed["instructions"], "Be brief.");
  EXPECT_EQ(parse_responses_request(R"({"input":"Hello"})", with_tools()).conversation.messages,
            chat_messages(R"([{"role":"user","content":"Hello"}])"));
}

TEST(Responses, WrongOnesAreNamed) {
  const auto field = [](const std::string& more) {
    return refused(parse_responses_request, R"({"input":"a",)" + more + "}");
  };
  EXPECT_EQ(field(R"("previous_response_id":"resp_1")"), "previous_response_id");
  EXPECT_EQ(field(R"("store":true)"), "store");
  EXPECT_EQ(field(R"("tools":[{"type":"web_search"}])"), "tools[0]");
  EXPECT_EQ(field(R"("tools":{})"), "tools");
  EXPECT_EQ(field(R"("tool_choice":{"type":"function","name":"f"})"), "tool_choice");
  EXPECT_EQ(field(R"("text":{"verbosity":"low"})"), "text");
  EXPECT_EQ(field(R"("text":{"format":{"type":"json_schema","name":"x"}})"), "text");
  const auto item = [](const std::string& items) {
    return refused(parse_responses_request, R"({"input":)" + items + "}");
  };
  EXPECT_EQ(item("[]"), "input");
  EXPECT_EQ(item("7"), "input");
  EXPECT_EQ(item(R"([{"type":"item_reference","id":"x"}])"), "input[0]");
  EXPECT_EQ(item(R"([{"role":"robot","content":"a"}])"), "input[0].role");
  EXPECT_EQ(item(R"([{"role":"user"}])"), "input[0]");
  EXPECT_EQ(item(R"([{"role":"user","content":[{"type":"input_image"}]}])"), "input[0].content");
  EXPECT_EQ(item(R"([{"type":"function_call","call_id":"x","name":"f"}])"), "input[0]");
  EXPECT_EQ(item(R"([{"type":"function_call_output","call_id":"x"}])"), "input[0]");
}

}  // namespace
}  // namespace ei::server
