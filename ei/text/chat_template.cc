#include "ei/text/chat_template.h"

#include <algorithm>
#include <ctime>

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei {
namespace {

// Stands in literal text behind the first character of a control token's string, where templates
// neither see nor change it. Unicode sets U+FDD0 aside for such uses: it is in no text.
constexpr std::string_view kBreak = "\xEF\xB7\x90";
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

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
    if (text.find(kBreak) != text.npos) text = replaced(std::move(text), kBreak, kReplacement);
    const std::vector<size_t> places = tokenizer.special_places(text);
    for (auto place = places.rbegin(); place != places.rend(); ++place)
      text.insert(next_char(text, *place), kBreak);
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

OrderedJson user_says(OrderedJson content) {
  return OrderedJson::array({{{"role", "user"}, {"content", std::move(content)}}});
}

bool all_text(const OrderedJson& content) {
  return content.is_array() &&
         std::all_of(content.begin(), content.end(), [](const OrderedJson& part) {
           return part.is_object() && part.contains("text") && part["text"].is_string();
         });
}

OrderedJson text_part(const std::string& text) { return {{"type", "text"}, {"text", text}}; }

std::string source_of(const Json& config, const std::string& where) {
  const Json& field = config["chat_template"];
  if (field.is_string()) return field.get<std::string>();
  require(field.is_array(), "{}: field \"chat_template\" is {}, expected a string or a list", where,
          field.type_name());
  for (const Json& named : field)
    if (const Fields fields(named, where + ": chat_template"); fields.string("name") == "default")
      return fields.string("template");
  fail("{}: \"chat_template\" is a list without one that is named \"default\"", where);
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

ChatTemplate::ChatTemplate(std::string_view source, std::string where, OrderedJson names,
                           const Tokenizer& tokenizer)
    : template_(source, where),
      where_(std::move(where)),
      names_(std::move(names)),
      tokenizer_(&tokenizer),
      knows_tools_(source.find("tools") != source.npos),
      takes_parts_(understands_parts()) {}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model_dir,
                                               const Tokenizer& tokenizer) {
  const auto own_path = model_dir / "chat_template.jinja";
  const auto config_path = model_dir / "tokenizer_config.json";
  const Json config = file_exists(config_path) ? read_json(config_path) : Json::object();
  if (file_exists(own_path))
    return ChatTemplate(read_file(own_path), own_path.string(), names_of(config), tokenizer);
  if (!config.contains("chat_template") || config["chat_template"].is_null()) return std::nullopt;
  return ChatTemplate(source_of(config, config_path.string()), config_path.string(),
                      names_of(config), tokenizer);
}

// One that prints a list of one text as it prints the text.
bool ChatTemplate::understands_parts() const {
  constexpr const char* kText = "some text";
  try {
    const std::string plain = fill(user_says(kText), {});
    return plain.find(kText) != plain.npos &&
           fill(user_says(OrderedJson::array({text_part(kText)})), {}) == plain;
  } catch (const Error&) {
    return false;
  }
}

OrderedJson ChatTemplate::prepared(const OrderedJson& message) const {
  OrderedJson out = message;
  require(out.is_object(), "a message is {}, expected an object", out.type_name());
  if (const auto content = out.find("content");
      content != out.end() && all_text(*content) && (!takes_parts_ || content->size() <= 1)) {
    std::string text;
    for (const OrderedJson& part : *content) {
      if (&part != &content->front()) text += "\n\n";
      text += part["text"].get_ref<const std::string&>();
    }
    *content = std::move(text);
  }
  // An answer may hold control tokens: the model itself wrote them, around its thinking.
  if (!out.contains("role") || out["role"] != "assistant") make_literal(*tokenizer_, out);
  return out;
}

std::string ChatTemplate::fill(const OrderedJson& messages, const ChatOptions& options) const {
  OrderedJson variables = names_;
  for (const auto& [key, value] : options.variables.items()) {
    require(!variables.contains(key) && key != "messages" && key != "add_generation_prompt",
            "chat template: the variable \"{}\" is the server's own; choose another name", key);
    variables[key] = value;
  }
  variables["messages"] = messages;
  variables["add_generation_prompt"] = true;
  jinja::Options how;
  how.strftime_now = options.strftime_now ? options.strftime_now : local_time;
  return template_.render(variables, how);
}

std::vector<TextPiece> ChatTemplate::render(const OrderedJson& messages,
                                            const ChatOptions& options) const {
  require(messages.is_array() && !messages.empty(), "a conversation without a message");
  OrderedJson all = OrderedJson::array();
  for (const OrderedJson& message : messages) all.push_back(prepared(message));
  return at_breaks(fill(all, options));
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
