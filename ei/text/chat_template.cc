#include "ei/text/chat_template.h"

#include <algorithm>
#include <ctime>
#include <map>

#include "ei/base/fail.h"
#include "ei/text/tokenizer_config.h"

namespace ei {
namespace {

// Stands in literal text behind the first character of a control token's string, where templates
// neither see nor change it. Unicode sets U+FDD0 aside for such uses: it is in no text.
constexpr std::string_view kBreak = "\xEF\xB7\x90";
constexpr std::string_view kReplacementText = "\xEF\xBF\xBD";

std::string local_time(std::string_view format) {
  constexpr size_t kMaxFormat = 256;
  require(format.size() <= kMaxFormat, "strftime_now: the format has {} bytes, at most {}",
          format.size(), kMaxFormat);
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[16 * kMaxFormat];
  return {text, std::strftime(text, sizeof text, std::string(format).c_str(), &local)};
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

size_t next_char(std::string_view text, size_t at) {
  do ++at;
  while (at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

// Breaks the control tokens of all strings in `json`.
void make_literal(const Tokenizer& tokenizer, OrderedJson& json) {
  if (json.is_structured()) {
    for (auto& item : json) make_literal(tokenizer, item);
  } else if (json.is_string()) {
    auto& text = json.get_ref<std::string&>();
    if (text.find(kBreak) != text.npos) text = replaced(std::move(text), kBreak, kReplacementText);
    std::string broken;
    size_t done = 0;
    for (const size_t place : tokenizer.special_places(text)) {
      const size_t end = next_char(text, place);
      broken.append(text, done, end - done).append(kBreak);
      done = end;
    }
    if (done > 0) text = broken.append(text, done);
  }
}

// What stood in front of a break is literal.
std::vector<TextPiece> at_breaks(const std::string& text) {
  std::vector<TextPiece> pieces;
  std::string piece;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(kBreak, at), text.size());
    piece.append(text, at, end - at);
    at = end + kBreak.size();
    if (end == text.size()) break;
    if (piece.empty()) continue;
    size_t last = piece.size() - 1;
    while (last > 0 && (static_cast<uint8_t>(piece[last]) & 0xC0) == 0x80) --last;
    pieces.push_back({piece.substr(0, last), /*parse_special=*/true});
    pieces.push_back({piece.substr(last), /*parse_special=*/false});
    piece.clear();
  }
  pieces.push_back({std::move(piece), /*parse_special=*/true});
  return pieces;
}

// What shows how a template writes things.
constexpr const char* kText = "some text";
constexpr const char* kArguments = R"({"place": "Rome"})";

OrderedJson user_says(OrderedJson content) {
  return OrderedJson::array({{{"role", "user"}, {"content", std::move(content)}}});
}

OrderedJson calls_tool(OrderedJson content, OrderedJson arguments) {
  OrderedJson messages = user_says(kText);
  messages.push_back(
      {{"role", "assistant"},
       {"content", std::move(content)},
       {"tool_calls",
        {{{"id", "abcdefghi"},
          {"type", "function"},
          {"function", {{"name", "weather"}, {"arguments", std::move(arguments)}}}}}}});
  return messages;
}

OrderedJson a_tool() {
  return OrderedJson::array(
      {{{"type", "function"},
        {"function",
         {{"name", "weather"},
          {"description", kText},
          {"parameters", {{"type", "object"}, {"properties", OrderedJson::object()}}}}}}});
}

bool all_text(const OrderedJson& content) {
  return content.is_array() &&
         std::all_of(content.begin(), content.end(), [](const OrderedJson& part) {
           return part.is_object() && part.contains("text") && part["text"].is_string();
         });
}

OrderedJson text_part(const std::string& text) { return {{"type", "text"}, {"text", text}}; }

// The templates of a Hugging Face directory, by name.
struct Source {
  std::string text, where;
};
std::map<std::string, Source> find_sources(const std::filesystem::path& dir, const Json& config) {
  std::map<std::string, Source> sources;
  const auto read = [&](const std::string& name, const std::filesystem::path& path) {
    if (file_exists(path)) sources[name] = {read_file(path), path.string()};
  };
  read("default", dir / "chat_template.jinja");
  read("tool_use", dir / "additional_chat_templates" / "tool_use.jinja");
  if (!sources.empty()) return sources;

  const auto take = [&](const Json& json, const std::filesystem::path& path) {
    const std::string where = path.string();
    if (!json.contains("chat_template") || json["chat_template"].is_null()) return;
    const Json& field = json["chat_template"];
    if (field.is_string()) {
      sources["default"] = {field.get<std::string>(), where};
      return;
    }
    require(field.is_array(), "{}: field \"chat_template\" is {}, expected a string or a list",
            where, field.type_name());
    for (const Json& named : field) {
      const Fields fields(named, where + ": chat_template");
      sources[fields.string("name")] = {fields.string("template"), where};
    }
  };
  if (const auto path = dir / "chat_template.json"; file_exists(path)) take(read_json(path), path);
  if (sources.empty()) take(config, dir / "tokenizer_config.json");
  return sources;
}

// The arguments of a tool call as the template wants them; what is not an object's JSON stays.
void arrange_arguments(OrderedJson& call, bool as_string) {
  if (!call.is_object()) return;
  OrderedJson& function = call.contains("function") ? call["function"] : call;
  if (!function.is_object() || !function.contains("arguments")) return;
  OrderedJson& arguments = function["arguments"];
  if (as_string && arguments.is_object()) {
    arguments = arguments.dump();
  } else if (!as_string && arguments.is_string()) {
    const std::string& text = arguments.get_ref<const std::string&>();
    if (OrderedJson parsed = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
        parsed.is_object())
      arguments = std::move(parsed);
  }
}

// "bos_token": "<s>", and the like.
OrderedJson names_of(const Json& config) {
  OrderedJson names = OrderedJson::object();
  for (const auto& [key, value] : config.items()) {
    if (!key.ends_with("_token")) continue;
    if (value.is_string()) names[key] = value;
    if (value.is_object() && value.value("content", Json()).is_string())
      names[key] = value["content"];
  }
  return names;
}

}  // namespace

ChatTemplate::Style::Style(std::string_view text, std::string file, const OrderedJson& names)
    : source(text, file),
      where(std::move(file)),
      knows_tools(text.find("tools") != text.npos),
      answers(AnswerFormat::of_template(text)) {
  // What is tried is nothing when the template fails at it.
  const auto attempt = [&](const OrderedJson& messages, bool tools) -> std::optional<std::string> {
    ChatOptions options;
    if (tools) options.variables["tools"] = a_tool();
    try {
      return fill(names, messages, options, {.max_steps = 100'000});
    } catch (const Error&) {
      return std::nullopt;
    }
  };
  const auto has = [](const std::optional<std::string>& out, std::string_view wanted) {
    return out && out->find(wanted) != out->npos;
  };
  const auto plain = attempt(user_says(kText), false);
  takes_parts = has(plain, kText) &&
                plain == attempt(user_says(OrderedJson::array({text_part(kText)})), false);

  const OrderedJson arguments = OrderedJson::parse(kArguments);
  const auto as_null = attempt(calls_tool(nullptr, arguments), knows_tools);
  const auto as_empty = attempt(calls_tool("", arguments), knows_tools);
  takes_null = as_null && (!has(as_null, "None") || has(as_empty, "None"));
  const OrderedJson content = takes_null ? OrderedJson() : OrderedJson("");
  takes_strings = !has(attempt(calls_tool(content, arguments), knows_tools), kArguments) &&
                  has(attempt(calls_tool(content, kArguments), knows_tools), kArguments);
}

std::string ChatTemplate::Style::fill(const OrderedJson& names, const OrderedJson& messages,
                                      const ChatOptions& options,
                                      const jinja::Limits& limits) const {
  OrderedJson variables = names;
  for (const auto& [key, value] : options.variables.items()) {
    require(!variables.contains(key) && key != "messages" && key != "add_generation_prompt",
            "chat template: the variable \"{}\" is the server's own; choose another name", key);
    variables[key] = value;
  }
  variables["messages"] = messages;
  variables["add_generation_prompt"] = options.add_generation_prompt;
  jinja::Options how{.limits = limits};
  how.strftime_now = options.strftime_now ? options.strftime_now : local_time;
  return source.render(variables, how);
}

ChatTemplate::ChatTemplate(std::string_view source, std::string where, OrderedJson names,
                           const Tokenizer& tokenizer)
    : names_(std::move(names)),
      tokenizer_(&tokenizer),
      default_(source, std::move(where), names_) {}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model_dir,
                                               const Tokenizer& tokenizer) {
  const Json config = read_tokenizer_config(model_dir);
  auto sources = find_sources(model_dir, config);
  if (sources.empty()) return std::nullopt;
  const auto main = sources.find("default");
  require(main != sources.end(),
          "{}: of the chat templates there none is the default one (chat_template.jinja, or "
          "\"default\" in a list of \"chat_template\")",
          sources.begin()->second.where);
  ChatTemplate chat(main->second.text, main->second.where, names_of(config), tokenizer);
  if (const auto tools = sources.find("tool_use"); tools != sources.end())
    chat.tool_use_.emplace(tools->second.text, tools->second.where, chat.names_);
  return chat;
}

OrderedJson ChatTemplate::prepared(const OrderedJson& message, const Style& style) const {
  OrderedJson out = message;
  require(out.is_object(), "a message is {}, expected an object", out.type_name());
  if (const auto content = out.find("content");
      content != out.end() && all_text(*content) && (!style.takes_parts || content->size() <= 1)) {
    std::string text;
    for (const OrderedJson& part : *content) {
      if (&part != &content->front()) text += "\n\n";
      text += part["text"].get_ref<const std::string&>();
    }
    *content = std::move(text);
  }
  if (const auto calls = out.find("tool_calls");
      calls != out.end() && calls->is_array() && !calls->empty()) {
    for (OrderedJson& call : *calls) arrange_arguments(call, style.takes_strings);
    if (const auto content = out.find("content");
        content == out.end() || content->is_null() || *content == "")
      out["content"] = style.takes_null ? OrderedJson() : OrderedJson("");
  }
  // An answer may hold control tokens: the model itself wrote them, around its thinking.
  if (!out.contains("role") || out["role"] != "assistant") make_literal(*tokenizer_, out);
  return out;
}

std::vector<TextPiece> ChatTemplate::render(const OrderedJson& messages,
                                            const ChatOptions& options) const {
  require(messages.is_array() && !messages.empty(), "a conversation without a message");
  const auto tools = options.variables.find("tools");
  const bool has_tools = tools != options.variables.end() && !tools->is_null();
  const Style& style = has_tools && tool_use_ ? *tool_use_ : default_;
  OrderedJson all = OrderedJson::array();
  for (const OrderedJson& message : messages) all.push_back(prepared(message, style));
  return at_breaks(style.fill(names_, all, options));
}

std::vector<int32_t> ChatTemplate::encode(const OrderedJson& messages,
                                          const ChatOptions& options) const {
  const std::vector<TextPiece> pieces = render(messages, options);
  const std::string bos =
      tokenizer_->bos_id() ? tokenizer_->token_bytes(*tokenizer_->bos_id()) : "";
  const bool has_bos = !bos.empty() && pieces.front().text.starts_with(bos);
  return tokenizer_->encode(pieces, /*add_bos=*/!has_bos);
}

OrderedJson to_json(std::span<const Message> messages) {
  OrderedJson list = OrderedJson::array();
  for (const Message& message : messages) {
    OrderedJson content = OrderedJson::array();
    for (const std::string& part : message.parts) content.push_back(text_part(part));
    list.push_back({{"role", message.role}, {"content", std::move(content)}});
  }
  return list;
}

}  // namespace ei
