#include "apps/server/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "apps/server/fields.h"
#include "ei/policy/named.h"

namespace ei::server {
namespace {

using ::testing::HasSubstr;

constexpr std::pair<Endpoint, const char*> kEndpoints[] = {{kChat, "chat"},
                                                           {kCompletions, "completions"},
                                                           {kTokenize, "tokenize"},
                                                           {kDetokenize, "detokenize"},
                                                           {kTemplate, "apply-template"},
                                                           {kMessages, "messages"},
                                                           {kCountTokens, "count-tokens"},
                                                           {kResponses, "responses"},
                                                           {kEmbeddings, "embeddings"}};

RequestDefaults defaults() {
  RequestDefaults defaults;
  defaults.tools = true;
  return defaults;
}

// A request to the endpoint that asks for nothing more than it must.
OrderedJson least(Endpoint endpoint) {
  switch (endpoint) {
    case kChat:
    case kTemplate:
    case kCountTokens:
      return {{"messages", {{{"role", "user"}, {"content", "a"}}}}};
    case kCompletions:
    case kTokenize:
      return {{"prompt", "a"}};
    case kMessages:
      return {{"messages", {{{"role", "user"}, {"content", "a"}}}}, {"max_tokens", 2}};
    case kResponses:
    case kEmbeddings:
      return {{"input", "a"}};
    case kDetokenize:
      break;
  }
  return {{"tokens", {5}}};
}

// The same for a field that goes with messages, of an endpoint that also takes a text.
OrderedJson least_of(Endpoint endpoint, std::string_view field) {
  if (endpoint != kTokenize || field == "model" || field == "prompt") return least(endpoint);
  if (field == "content" || field == "text") return OrderedJson::object();  // instead of a prompt
  return field.starts_with("add_special") ? least(endpoint) : least(kTemplate);
}

void parse(Endpoint endpoint, const std::string& body) {
  switch (endpoint) {
    case kChat:
      parse_chat_request(body, defaults());
      return;
    case kCompletions:
      parse_completion_request(body, defaults());
      return;
    case kTokenize:
      parse_text_request(body, defaults());
      return;
    case kDetokenize:
      parse_tokens_request(body, defaults());
      return;
    case kMessages:
      parse_messages_request(body, defaults());
      return;
    case kCountTokens:
      parse_count_tokens_request(body, defaults());
      return;
    case kResponses:
      parse_responses_request(body, defaults());
      return;
    case kEmbeddings:
      parse_embeddings_request(body, defaults());
      return;
    case kTemplate:
      parse_conversation_request(body, defaults());
  }
}

// The field that the refusal names; empty when the request is taken.
std::string refused_text(Endpoint endpoint, const std::string& body) {
  try {
    parse(endpoint, body);
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    return error.param.empty() ? error.what() : error.param;
  }
  return "";
}
std::string refused(Endpoint endpoint, const OrderedJson& request) {
  return refused_text(endpoint, request.dump());
}

ApiRequest chat(const OrderedJson& more) {
  OrderedJson request = least(kChat);
  request.update(more);
  return parse_chat_request(request.dump(), defaults());
}

OrderedJson message(const OrderedJson& json) {
  return chat({{"messages", {json}}}).conversation.messages[0];
}

TEST(Fields, EachDoesWhatItsRuleSays) {
  for (const FieldRule& rule : field_rules()) {
    for (const auto& [endpoint, name] : kEndpoints) {
      if ((rule.endpoints & endpoint) == 0) continue;
      SCOPED_TRACE(std::string(name) + " " + std::string(rule.name));
      OrderedJson request = least(endpoint);
      if (endpoint == kTokenize) request = least_of(endpoint, rule.name);
      if (rule.name == "stream_options" || rule.name == "return_progress") request["stream"] = true;
      if (rule.name == "top_logprobs") request["logprobs"] = true;
      if (rule.name == "add_special") request["add_special_tokens"] = false;
      if (rule.name == "max_completion_tokens") request["max_tokens"] = 2;
      request[std::string(rule.name)] = OrderedJson::parse(rule.example);
      const bool is_refused = rule.use == FieldRule::Use::kUnsupported;
      EXPECT_EQ(refused(endpoint, request), is_refused ? rule.name : "");
      if (rule.name != "messages" && rule.name != "prompt" && rule.name != "tokens" &&
          rule.name != "content" && rule.name != "input" &&
          !(rule.name == "text" && endpoint == kTokenize) &&
          !(rule.name == "max_tokens" && endpoint == kMessages)) {
        request[std::string(rule.name)] = nullptr;
        EXPECT_EQ(refused(endpoint, request), "");
      }
      std::istringstream accepted{std::string(rule.accepted)};
      for (std::string value; accepted >> value;) {
        request[std::string(rule.name)] = OrderedJson::parse(value);
        EXPECT_EQ(refused(endpoint, request), "") << value;
      }
    }
  }
}

TEST(Fields, TheDocumentationHasThemAll) {
  std::ifstream file(EI_SOURCE_DIR "/docs/API.md");
  std::stringstream text;
  text << file.rdbuf();
  const std::string docs = text.str();
  size_t n_rows = 0;
  for (size_t at = docs.find("\n| `"); at != docs.npos; at = docs.find("\n| `", at + 1)) ++n_rows;
  EXPECT_EQ(n_rows, field_rules().size());
  for (const FieldRule& rule : field_rules()) {
    std::string where;
    for (const auto& [endpoint, name] : kEndpoints)
      if ((rule.endpoints & endpoint) != 0)
        where += (where.empty() ? "" : ", ") + std::string(name);
    std::string becomes = rule.use == FieldRule::Use::kObeyed     ? "obeyed"
                          : rule.use == FieldRule::Use::kNoEffect ? "no effect"
                                                                  : "refused";
    if (!rule.accepted.empty()) becomes += ", but for `" + std::string(rule.accepted) + "`";
    EXPECT_THAT(docs, HasSubstr("\n| `" + std::string(rule.name) + "` | " + where + " | " +
                                becomes + " | `" + std::string(rule.example) + "` | " +
                                std::string(rule.note) + " |\n"));
  }
}

TEST(Fields, UnknownOnesAreTold) {
  EXPECT_EQ(chat({{"temprature", 1}, {"x", nullptr}}).unknown_fields,
            (std::vector<std::string>{"temprature", "x"}));
  const std::vector<std::string> one = {"x"};
  EXPECT_EQ(parse_text_request(R"({"content":"a","x":1})", defaults()).unknown_fields, one);
  EXPECT_EQ(parse_tokens_request(R"({"tokens":[],"x":1})", defaults()).unknown_fields, one);
  EXPECT_EQ(parse_conversation_request(R"({"messages":[{"role":"user","content":"a"}],"x":1})",
                                       defaults())
                .unknown_fields,
            one);
}

// Readers differ in which of two they take, proxies among them: no endpoint takes either, however
// they are spelt and however deep they stand.
TEST(Fields, AKeyStandsOnce) {
  for (const auto& [endpoint, name] : kEndpoints) {
    SCOPED_TRACE(name);
    const std::string body = least(endpoint).dump().substr(1);
    EXPECT_EQ(refused_text(endpoint, "{" + body), "");
    EXPECT_THAT(refused_text(endpoint, R"({"user":"a","user":"a",)" + body),
                HasSubstr("duplicate key \"user\""));
    EXPECT_THAT(refused_text(endpoint, R"({"user":"a","us\u0065r":"b",)" + body),
                HasSubstr("duplicate key \"user\""));
    EXPECT_THAT(refused_text(endpoint, R"({"metadata":{"k":[{"d":1,"e":2,"d":1}]},)" + body),
                HasSubstr("duplicate key \"d\""));
  }
}

TEST(Fields, ATextIsGivenOnce) {
  const OrderedJson messages = least(kTemplate)["messages"];
  const std::pair<const char*, OrderedJson> cases[] = {
      {"prompt", {{"content", "a"}, {"prompt", "b"}}},
      {"text", {{"text", "a"}, {"content", "b"}}},
      {"content", {{"messages", messages}, {"content", "b"}}},
      {"add_special_tokens", {{"messages", messages}, {"add_special_tokens", true}}},
      {"add_special", {{"messages", messages}, {"add_special", true}}},
      {"content", {{"content", nullptr}}}};
  for (const auto& [field, request] : cases) EXPECT_EQ(refused(kTokenize, request), field);
  EXPECT_EQ(refused(kTokenize, {{"messages", messages}, {"add_special_tokens", false}}), "");
  EXPECT_EQ(refused(kTokenize, {{"messages", messages}, {"content", nullptr}}), "");
  EXPECT_EQ(refused(kChat, {{"messages", messages},
                            {"tools", {{{"type", "function"}}}},
                            {"chat_template_kwargs", {{"tools", {1}}}}}),
            "tools");
}

TEST(Fields, WholeNumbersMayHaveAPoint) {
  EXPECT_EQ(chat({{"max_tokens", 100.0}}).request.max_tokens, 100);
  EXPECT_EQ(refused(kCompletions, {{"prompt", {5.0, 7.0}}}), "");
  EXPECT_NE(refused(kCompletions, {{"prompt", "a"}, {"max_tokens", 100.5}}), "");
  EXPECT_NE(refused(kCompletions, {{"prompt", "a"}, {"max_tokens", 1e300}}), "");
  EXPECT_NE(refused(kDetokenize, {{"tokens", {5.5}}}), "");
}

TEST(Fields, ContradictionsAreRefused) {
  const std::pair<const char*, OrderedJson> cases[] = {
      {"budget", {{"decode", "full"}, {"budget", 256}}},
      {"base_budget", {{"prefill", "dense"}, {"base_budget", 256}}},
      {"max_tokens", {{"max_tokens", 5}, {"max_completion_tokens", 6}}},
      {"min_tokens", {{"max_tokens", 5}, {"min_tokens", 6}}},
      {"stream_options", {{"stream_options", {{"include_usage", true}}}}},
      {"return_progress", {{"return_progress", true}}},
      {"top_logprobs", {{"top_logprobs", 2}}}};
  for (const auto& [field, more] : cases) {
    OrderedJson request = least(kChat);
    request.update(more);
    EXPECT_EQ(refused(kChat, request), field) << request;
  }
  EXPECT_EQ(refused(kCompletions, {{"prompt", "a"}, {"n", 3}, {"best_of", 2}}), "best_of");
  EXPECT_EQ(refused(kCompletions, {{"prompt", "a"}, {"best_of", 2}, {"stream", true}}), "best_of");
  EXPECT_EQ(
      refused(kTokenize, {{"prompt", "a"}, {"add_special", true}, {"add_special_tokens", false}}),
      "add_special");
}

TEST(Fields, PoliciesGoByTheirNames) {
  EXPECT_TRUE(chat({{"prefill", "dense"}}).request.prefill.is_dense());
  EXPECT_EQ(chat({{"prefill", "criti"}}).request.prefill.fusion, PrefillPolicy::criti().fusion);
  for (const char* name : {"latent", "full", "snapkv", "adakv", "latent-adakv", "pyramidkv",
                           "streaming", "expected"}) {
    const ApiRequest request = chat({{"decode", name}});
    EXPECT_EQ(request.request.decode.is_full(), std::string_view(name) == "full");
  }
  OrderedJson request = least(kChat);
  for (const char* name : {"h2o", "kvzip", "kvzip-plus"}) {
    request["decode"] = name;
    EXPECT_EQ(refused(kChat, request), "decode") << name;
  }
}

TEST(Fields, TheServersOwnPolicyKeepsItsSettings) {
  RequestDefaults own;
  own.prefill.budget.base = 300;
  own.decode.budget = 77;
  const auto ask = [&](const OrderedJson& more) {
    OrderedJson request = least(kChat);
    request.update(more);
    return parse_chat_request(request.dump(), own).request;
  };
  EXPECT_EQ(ask({{"prefill", "paper"}, {"decode", "latent"}}).prefill.budget.base, 300);
  EXPECT_EQ(ask({{"prefill", "paper"}, {"decode", "latent"}}).decode.budget, 77);
  EXPECT_EQ(ask({{"decode", "snapkv"}}).decode.budget, DecodePolicy::snapkv().budget);
  for (const bool on_gpu : {false, true}) {
    own.on_gpu = on_gpu;
    EXPECT_EQ(ask({{"prefill", "entropy"}}).prefill, *find_prefill("entropy", on_gpu));
  }
}

TEST(Messages, AreTakenAsClientsSendThem) {
  EXPECT_EQ(message({{"role", "user"}, {"content", OrderedJson::array()}})["content"], "");
  EXPECT_EQ(message({{"role", "user"}, {"content", nullptr}})["content"], "");
  EXPECT_EQ(message({{"role", "assistant"}, {"content", OrderedJson::array()}})["content"],
            nullptr);
  EXPECT_EQ(message({{"role", "assistant"}})["content"], nullptr);
  EXPECT_EQ(message({{"role", "assistant"}, {"refusal", "no"}})["content"], "no");
  EXPECT_EQ(message({{"role", "developer"}, {"content", "a"}})["role"], "system");
  const OrderedJson refusal = {{{"type", "refusal"}, {"refusal", "I will not."}}};
  EXPECT_EQ(message({{"role", "assistant"}, {"content", refusal}})["content"][0]["text"],
            "I will not.");
  // As OpenAI's API answers, sent back.
  const OrderedJson call = {{"id", "c1"},
                            {"type", "function"},
                            {"function", {{"name", "f"}, {"arguments", "{\"b\":1,\"a\":2}"}}}};
  const OrderedJson sent = {{"role", "assistant"},      {"content", nullptr},
                            {"refusal", nullptr},       {"audio", nullptr},
                            {"function_call", nullptr}, {"annotations", OrderedJson::array()},
                            {"tool_calls", {call}}};
  EXPECT_EQ(message(sent),
            OrderedJson({{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {call}}}));
}

TEST(Messages, WrongOnesAreNamed) {
  const auto field = [](const OrderedJson& json) { return refused(kChat, {{"messages", {json}}}); };
  EXPECT_EQ(field({{"role", "user"}}), "messages[0].content");
  EXPECT_EQ(field({{"role", "robot"}, {"content", "a"}}), "messages[0].role");
  EXPECT_EQ(field({{"role", "user"}, {"content", {{{"type", "image_url"}}}}}),
            "messages[0].content");
  EXPECT_EQ(field({{"role", "assistant"}, {"tool_calls", {{{"function", "f"}}}}}),
            "messages[0].tool_calls");
  EXPECT_EQ(field({{"role", "assistant"}, {"audio", {{"id", "x"}}}}), "messages[0].audio");
}

TEST(Messages, NestTo256Levels) {
  const auto schema = [](int depth) {
    OrderedJson json = {{"type", "string"}};
    for (int i = 0; i < depth; ++i) json = {{"items", json}};
    OrderedJson request = least(kChat);
    request["tools"] = {
        {{"type", "function"}, {"function", {{"name", "f"}, {"parameters", json}}}}};
    return request;
  };
  EXPECT_EQ(refused(kChat, schema(250)), "");
  EXPECT_THAT(refused(kChat, schema(260)), HasSubstr("nested deeper than 256"));
}

}  // namespace
}  // namespace ei::server
