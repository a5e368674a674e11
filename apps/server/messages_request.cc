#include <fmt/format.h>

#include "apps/server/read_request.h"
#include "apps/server/tools.h"

namespace ei::server {
namespace {

// Blocks of text, or a string, as a chat's content.
OrderedJson text_blocks(const OrderedJson& content, const std::string& param) {
  if (content.is_string()) return content;
  if (!content.is_array() || content.size() > kMaxParts)
    bad(param, fmt::format("'{}' must be a string or at most {} blocks.", param, kMaxParts));
  OrderedJson parts = OrderedJson::array();
  for (const OrderedJson& block : content) {
    if (type_of(block) != "text")
      bad(param, fmt::format("'{}' has a block of type {}: this model reads text only.", param,
                             shown(type_of(block))));
    parts.push_back({{"type", "text"}, {"text", string_at(block, "text", param)}});
  }
  return parts;
}

// Appends what a user says: texts, and results of tools as messages of their own.
void append_user(OrderedJson& chat, const OrderedJson& content, const std::string& param,
                 bool tools) {
  OrderedJson texts = OrderedJson::array();
  const auto flush = [&] {
    if (!texts.empty()) chat.push_back({{"role", "user"}, {"content", std::move(texts)}});
    texts = OrderedJson::array();
  };
  for (const OrderedJson& block : content) {
    if (type_of(block) != "tool_result") {
      for (OrderedJson& text : text_blocks(OrderedJson::array({block}), param))
        texts.push_back(std::move(text));
      continue;
    }
    require_tools(tools, param);
    flush();
    OrderedJson message = {{"role", "tool"},
                           {"tool_call_id", string_at(block, "tool_use_id", param)},
                           {"content", ""}};
    if (given(block, "content")) message["content"] = text_blocks(block["content"], param);
    chat.push_back(std::move(message));
  }
  flush();
}

void append_assistant(OrderedJson& chat, const OrderedJson& content, const std::string& param,
                      bool tools) {
  OrderedJson texts = OrderedJson::array(), calls = OrderedJson::array();
  std::string thoughts;
  for (const OrderedJson& block : content) {
    const std::string type = type_of(block);
    if (type == "thinking") {
      thoughts += string_at(block, "thinking", param);
    } else if (type == "tool_use") {
      require_tools(tools, param);
      if (!given(block, "input") || !block["input"].is_object())
        bad(param, fmt::format("'{}': a tool_use's 'input' must be an object.", param));
      calls.push_back(
          {{"id", string_at(block, "id", param)},
           {"type", "function"},
           {"function",
            {{"name", string_at(block, "name", param)}, {"arguments", block["input"]}}}});
    } else if (type != "redacted_thinking") {  // which only its author can read
      for (OrderedJson& text : text_blocks(OrderedJson::array({block}), param))
        texts.push_back(std::move(text));
    }
  }
  OrderedJson message = {{"role", "assistant"}, {"content", std::move(texts)}};
  if (!thoughts.empty()) message["reasoning_content"] = std::move(thoughts);
  if (!calls.empty()) message["tool_calls"] = std::move(calls);
  chat.push_back(std::move(message));
}

OrderedJson chat_messages(const OrderedJson& json, bool tools) {
  if (!given(json, "messages") || !json["messages"].is_array() || json["messages"].empty() ||
      json["messages"].size() > kMaxMessages)
    bad("messages", fmt::format("'messages' must be 1 to {} messages.", kMaxMessages));
  OrderedJson chat = OrderedJson::array();
  if (given(json, "system"))
    chat.push_back({{"role", "system"}, {"content", text_blocks(json["system"], "system")}});
  size_t i = 0;
  std::string role;
  for (const OrderedJson& message : json["messages"]) {
    const std::string param = fmt::format("messages[{}]", i++);
    if (!message.is_object()) bad(param, fmt::format("'{}' must be an object.", param));
    role = string_at(message, "role", param);
    if (role != "user" && role != "assistant")
      bad(param + ".role",
          fmt::format("'{}.role' is {}, expected user or assistant.", param, shown(role)));
    const std::string where = param + ".content";
    const OrderedJson none, &content = message.contains("content") ? message["content"] : none;
    if (content.is_string()) {
      chat.push_back({{"role", role}, {"content", content}});
    } else if (!content.is_array() || content.size() > kMaxParts) {
      bad(where, fmt::format("'{}' must be a string or at most {} blocks.", where, kMaxParts));
    } else if (role == "user") {
      append_user(chat, content, where, tools);
    } else {
      append_assistant(chat, content, where, tools);
    }
  }
  if (role == "assistant")
    bad("messages",
        "The last of 'messages' is the assistant's: answers that go on from it are not "
        "supported.");
  return chat;
}

OrderedJson chat_tools(const OrderedJson& tools) {
  if (!tools.is_array()) bad("tools", "'tools' must be an array.");
  OrderedJson out = OrderedJson::array();
  for (size_t i = 0; i < tools.size(); ++i) {
    const OrderedJson& tool = tools[i];
    const std::string where = fmt::format("tools[{}]", i);
    if (!tool.is_object()) bad("tools", fmt::format("'{}' must be an object.", where));
    if (given(tool, "type") && tool["type"] != "custom")
      bad("tools", fmt::format("'{}.type' is {}: the server has no tools of its own.", where,
                               shown(type_of(tool))));
    if (!given(tool, "input_schema"))
      bad("tools", fmt::format("'{}.input_schema' is missing.", where));
    OrderedJson function = {{"name", string_at(tool, "name", "tools")}};
    if (given(tool, "description")) function["description"] = tool["description"];
    function["parameters"] = tool["input_schema"];
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

void read_tool_choice(const OrderedJson& choice, OrderedJson& chat) {
  const std::string type = type_of(choice);
  if (type == "auto" || type == "none") {
    chat["tool_choice"] = type;
  } else if (type == "any") {
    chat["tool_choice"] = "required";
  } else if (type == "tool") {
    chat["tool_choice"] = {{"type", "function"},
                           {"function", {{"name", string_at(choice, "name", "tool_choice")}}}};
  } else {
    bad("tool_choice",
        "'tool_choice' must be {\"type\": \"auto\", \"any\", \"none\" or \"tool\"}.");
  }
  const OrderedFields fields(choice, "tool_choice");
  if (fields.boolean("disable_parallel_tool_use", false)) chat["parallel_tool_calls"] = false;
}

void read_output_config(const OrderedJson& config, OrderedJson& chat) {
  if (!config.is_object()) bad("output_config", "'output_config' must be an object.");
  for (const auto& [key, value] : config.items())
    if (key != "format" && !value.is_null())
      bad("output_config", fmt::format("'output_config.{}' is not supported.", shown(key)));
  if (!given(config, "format")) return;
  const OrderedJson& format = config["format"];
  if (type_of(format) != "json_schema" || !given(format, "schema"))
    bad("output_config",
        "'output_config.format' must be {\"type\": \"json_schema\", \"schema\": ...}.");
  chat["response_format"] = {{"type", "json_schema"},
                             {"json_schema", {{"schema", format["schema"]}}}};
}

// The request as one to /v1/chat/completions.
OrderedJson chat_of(const OrderedJson& json, const RequestDefaults& defaults) {
  OrderedJson chat = shared_fields(json, kMessages);
  chat["messages"] = chat_messages(json, defaults.tools);
  if (given(json, "tools")) chat["tools"] = chat_tools(json["tools"]);
  if (given(json, "tool_choice")) read_tool_choice(json["tool_choice"], chat);
  if (given(json, "output_config")) read_output_config(json["output_config"], chat);
  if (given(json, "thinking")) {
    const std::string type = type_of(json["thinking"]);
    if (type != "enabled" && type != "disabled" && type != "adaptive")
      bad("thinking", "'thinking.type' must be enabled, disabled or adaptive.");
    OrderedJson& variables = chat["chat_template_kwargs"];
    if (variables.is_null()) variables = OrderedJson::object();
    if (type != "adaptive" && variables.is_object() && !variables.contains("enable_thinking"))
      variables["enable_thinking"] = type == "enabled";
  }
  return chat;
}

}  // namespace

ApiRequest parse_messages_request(std::string_view body, const RequestDefaults& defaults) {
  return checked(
      [&] {
        std::vector<std::string> unknown;
        OrderedJson json = parse_body(body, defaults, kMessages, unknown);
        if (!given(json, "max_tokens")) bad("max_tokens", "'max_tokens' is missing.");
        OrderedJson chat = chat_of(json, defaults);
        if (given(json, "stop_sequences")) {
          if (!json["stop_sequences"].is_array())
            bad("stop_sequences", "'stop_sequences' must be an array of strings.");
          chat["stop"] = json["stop_sequences"];
        }
        json = nullptr;  // long requests are not held more often than need be
        ApiRequest out = read_chat(chat, defaults);
        out.dialect = Dialect::kMessages;
        out.form.field = "output_config";
        out.unknown_fields = std::move(unknown);
        return out;
      },
      {{"stop", "stop_sequences"}, {"response_format", "output_config"}});
}

Given<Conversation> parse_count_tokens_request(std::string_view body,
                                               const RequestDefaults& defaults) {
  return checked([&] {
    Given<Conversation> out;
    const OrderedJson chat =
        chat_of(parse_body(body, defaults, kCountTokens, out.unknown_fields), defaults);
    out.value = read_conversation(chat, defaults);
    return out;
  });
}

}  // namespace ei::server
