#include <fmt/format.h>

#include "apps/server/read_request.h"
#include "apps/server/tools.h"

namespace ei::server {
namespace {

// Input and output parts as a chat's content.
OrderedJson input_parts(const OrderedJson& content, const std::string& param) {
  if (content.is_string()) return content;
  if (!content.is_array() || content.size() > kMaxParts)
    bad(param, fmt::format("'{}' must be a string or at most {} parts.", param, kMaxParts));
  OrderedJson parts = OrderedJson::array();
  for (const OrderedJson& part : content) {
    const std::string type = type_of(part);
    if (type != "input_text" && type != "output_text" && type != "text" && type != "refusal")
      bad(param, fmt::format("'{}' has a part of type {}: this model reads text only.", param,
                             shown(type)));
    const char* key = type == "refusal" ? "refusal" : "text";
    parts.push_back({{"type", "text"}, {"text", string_at(part, key, param)}});
  }
  return parts;
}

std::string thoughts_of(const OrderedJson& item, const std::string& param) {
  std::string text;
  for (const char* key : {"content", "summary"}) {
    if (!text.empty() || !given(item, key)) continue;
    if (!item[key].is_array() || item[key].size() > kMaxParts)
      bad(param, fmt::format("'{}.{}' must be at most {} parts.", param, key, kMaxParts));
    for (const OrderedJson& part : item[key]) text += string_at(part, "text", param);
  }
  return text;
}

// The items of a conversation as messages: what an assistant thought, said and called one after the
// other is one of them.
class Items {
 public:
  explicit Items(bool tools) : tools_(tools) {}

  void add(const OrderedJson& item, const std::string& param) {
    if (!item.is_object()) bad(param, fmt::format("'{}' must be an object.", param));
    const std::string type = type_of(item);
    if (type == "reasoning") {
      messages_.push_back({{"role", "assistant"},
                           {"content", nullptr},
                           {"reasoning_content", thoughts_of(item, param)}});
    } else if (type == "function_call") {
      require_tools(tools_, param);
      OrderedJson call = {{"id", string_at(item, "call_id", param)},
                          {"type", "function"},
                          {"function",
                           {{"name", string_at(item, "name", param)},
                            {"arguments", string_at(item, "arguments", param)}}}};
      assistant(/*has_said=*/true)["tool_calls"].push_back(std::move(call));
    } else if (type == "function_call_output") {
      require_tools(tools_, param);
      if (!given(item, "output")) bad(param, fmt::format("'{}.output' is missing.", param));
      messages_.push_back({{"role", "tool"},
                           {"tool_call_id", string_at(item, "call_id", param)},
                           {"content", input_parts(item["output"], param + ".output")}});
    } else if (type == "message" || !item.contains("type")) {
      const std::string role = string_at(item, "role", param);
      if (!item.contains("content")) bad(param, fmt::format("'{}.content' is missing.", param));
      OrderedJson content = input_parts(item["content"], param + ".content");
      if (role == "assistant") {
        assistant(/*has_said=*/false)["content"] = std::move(content);
      } else if (role == "user" || role == "system" || role == "developer") {
        messages_.push_back({{"role", role}, {"content", std::move(content)}});
      } else {
        bad(param + ".role", fmt::format("'{}.role' is {}, expected user, assistant, system or "
                                         "developer.",
                                         param, shown(role)));
      }
    } else {
      bad(param, fmt::format("'{}.type' is {}, which is not supported.", param, shown(type)));
    }
  }

  OrderedJson take() { return std::move(messages_); }

 private:
  // The assistant's last message if it goes on, be it that something was said, or a new one.
  OrderedJson& assistant(bool has_said) {
    const bool goes_on = !messages_.empty() && messages_.back()["role"] == "assistant" &&
                         (has_said || (messages_.back()["content"].is_null() &&
                                       !messages_.back().contains("tool_calls")));
    if (!goes_on) messages_.push_back({{"role", "assistant"}, {"content", nullptr}});
    return messages_.back();
  }

  const bool tools_;
  OrderedJson messages_ = OrderedJson::array();
};

OrderedJson messages_of(const OrderedJson& json, const RequestDefaults& defaults) {
  if (!given(json, "input")) bad("input", "'input' is missing.");
  const OrderedJson& input = json["input"];
  Items items(defaults.tools);
  const auto say = [&](const char* role, const OrderedJson& text) {
    items.add({{"role", role}, {"content", text}}, "input");
  };
  if (given(json, "instructions")) say("system", text_of(json["instructions"], "instructions"));
  if (input.is_string()) {
    say("user", input);
  } else if (!input.is_array() || input.empty() || input.size() > kMaxMessages) {
    bad("input", fmt::format("'input' must be a string or 1 to {} items.", kMaxMessages));
  } else {
    for (size_t i = 0; i < input.size(); ++i) items.add(input[i], fmt::format("input[{}]", i));
  }
  return items.take();
}

// {"type": "function", "name": ...} -> {"type": "function", "function": {"name": ...}}
OrderedJson chat_tool(const OrderedJson& tool, const std::string& param) {
  if (type_of(tool) != "function")
    bad(param, fmt::format("'{}' has type {}: the server has no tools of its own.", param,
                           shown(type_of(tool))));
  OrderedJson function = {{"name", string_at(tool, "name", param)}};
  for (const char* key : {"description", "parameters", "strict"})
    if (given(tool, key)) function[key] = tool[key];
  return {{"type", "function"}, {"function", std::move(function)}};
}

void read_text(const OrderedJson& text, OrderedJson& chat) {
  if (!text.is_object()) bad("text", "'text' must be an object.");
  for (const auto& [key, value] : text.items())
    if (key != "format" && !value.is_null() && value != "medium")
      bad("text", fmt::format("'text.{}' is not supported.", shown(key)));
  if (!given(text, "format")) return;
  const OrderedJson& format = text["format"];
  OrderedJson form = {{"type", type_of(format)}};
  if (form["type"] == "json_schema") {
    if (!given(format, "schema")) bad("text", "'text.format.schema' is missing.");
    form["json_schema"] = {{"schema", format["schema"]}};
  } else if (form["type"] != "text" && form["type"] != "json_object") {
    bad("text", "'text.format.type' must be text, json_object or json_schema.");
  }
  chat["response_format"] = std::move(form);
}

}  // namespace

ApiRequest parse_responses_request(std::string_view body, const RequestDefaults& defaults) {
  return checked(
      [&] {
        std::vector<std::string> unknown;
        OrderedJson json = parse_body(body, defaults, kResponses, unknown);
        OrderedJson chat = shared_fields(json, kResponses);
        chat["messages"] = messages_of(json, defaults);
        if (given(json, "max_output_tokens")) chat["max_tokens"] = json["max_output_tokens"];
        if (given(json, "tools")) {
          if (!json["tools"].is_array()) bad("tools", "'tools' must be an array.");
          chat["tools"] = OrderedJson::array();
          for (const OrderedJson& tool : json["tools"])
            chat["tools"].push_back(
                chat_tool(tool, fmt::format("tools[{}]", chat["tools"].size())));
        }
        if (given(json, "tool_choice")) {
          const OrderedJson& choice = json["tool_choice"];
          chat["tool_choice"] = choice.is_string() ? choice : chat_tool(choice, "tool_choice");
        }
        if (given(json, "text")) read_text(json["text"], chat);
        OrderedJson echoed = OrderedJson::object();
        for (const char* key :
             {"instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature",
              "text", "tool_choice", "tools", "top_p", "user"})
          if (given(json, key)) echoed[key] = std::move(json[key]);
        json = nullptr;  // long requests are not held more often than need be
        ApiRequest out = read_chat(chat, defaults);
        out.dialect = Dialect::kResponses;
        out.form.field = "text";
        out.unknown_fields = std::move(unknown);
        out.echoed = std::move(echoed);
        return out;
      },
      {{"max_tokens", "max_output_tokens"}, {"response_format", "text"}, {"messages", "input"}});
}

}  // namespace ei::server
