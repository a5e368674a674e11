#include "ei/text/chat.h"

#include <algorithm>
#include <array>
#include <utility>

#include "ei/base/fail.h"

namespace ei {
namespace {

// `text` with every `name` in it replaced by `value`.
std::string fill(std::string_view text, std::string_view name, std::string_view value) {
  std::string filled(text);
  for (size_t at = 0; (at = filled.find(name, at)) != filled.npos; at += value.size())
    filled.replace(at, name.size(), value);
  return filled;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t begin = std::min(text.find_first_not_of(kSpace), text.size());
  return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

// An answer without the thinking in front of it.
std::string_view without_thinking(std::string_view text) {
  constexpr std::string_view kEnd = "</think>";
  const size_t end = text.rfind(kEnd);
  if (end == text.npos) return text;
  text.remove_prefix(end + kEnd.size());
  return text.substr(std::min(text.find_first_not_of('\n'), text.size()));
}

}  // namespace

struct ChatFormat::Row {
  std::string_view name;
  std::string_view architecture = {};        // a part of its name; empty: any
  std::vector<std::string_view> needs = {};  // control tokens that the vocabulary has
  std::string_view bos = {};                 // once, in front of everything
  std::string_view before = {};              // in front of a message; names {role}
  std::string_view after = {};               // behind a message
  std::string_view after_answer = after;     // behind one of the assistant
  std::array<std::string_view, 3> roles = {"system", "user", "assistant"};
  std::vector<std::string_view> stops = {};             // tokens that end an answer
  std::optional<std::string_view> default_system = {};  // when the first message is another's
  std::string_view system_preamble = {};  // in front of the first system text; names {date}
  std::string_view no_thinking = {};      // begins an answer without thinking
  bool drops_old_thinking = false;        // of answers before the last question
  bool trims = false;                     // drops white space around a message
  bool part_is_block = false;             // each part of a message is a message
};

// The first row whose architecture and tokens fit is the model's. Source: the chat templates of the
// checkpoints' tokenizer_config.json, and needle-8m's README.
const ChatFormat::Row ChatFormat::kRows[] = {
    {.name = "needle",
     .needs = {"<|bos|>", "<|user|>", "<|assistant|>", "<|eot|>"},
     .bos = "<|bos|>",
     .before = "<|{role}|>",
     .after_answer = "<|eot|>",
     .roles = {"user", "user", "assistant"},  // it knows no system
     .stops = {"<|eot|>"},
     .part_is_block = true},
    {.name = "openpangu",
     .needs = {"<s>", "[unused9]", "[unused10]"},
     .bos = "<s>",
     .before = "[unused9]{role}：",
     .after = "[unused10]",
     .roles = {"系统", "用户", "助手"},
     .stops = {"[unused10]"},
     .default_system = ""},
    {.name = "llama-3.1",  // and 3.2, 3.3: <|eom_id|> is what 3.0 does not have
     .needs = {"<|start_header_id|>", "<|eot_id|>", "<|eom_id|>"},
     .bos = "<|begin_of_text|>",
     .before = "<|start_header_id|>{role}<|end_header_id|>\n\n",
     .after = "<|eot_id|>",
     .stops = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"},
     .default_system = "",
     .system_preamble = "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n",
     .trims = true},
    {.name = "llama-3",
     .needs = {"<|start_header_id|>", "<|eot_id|>"},
     .bos = "<|begin_of_text|>",
     .before = "<|start_header_id|>{role}<|end_header_id|>\n\n",
     .after = "<|eot_id|>",
     .stops = {"<|eot_id|>", "<|end_of_text|>"},
     .trims = true},
    {.name = "qwen3",
     .architecture = "Qwen3",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .before = "<|im_start|>{role}\n",
     .after = "<|im_end|>\n",
     .stops = {"<|im_end|>", "<|endoftext|>"},
     .no_thinking = "<think>\n\n</think>\n\n",
     .drops_old_thinking = true},
    {.name = "qwen2.5",  // <tool_call> is what 2 does not have
     .architecture = "Qwen2",
     .needs = {"<|im_start|>", "<|im_end|>", "<tool_call>"},
     .before = "<|im_start|>{role}\n",
     .after = "<|im_end|>\n",
     .stops = {"<|im_end|>", "<|endoftext|>"},
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "qwen2",
     .architecture = "Qwen2",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .before = "<|im_start|>{role}\n",
     .after = "<|im_end|>\n",
     .stops = {"<|im_end|>", "<|endoftext|>"},
     .default_system = "You are a helpful assistant."},
};

std::optional<ChatFormat> ChatFormat::find(std::string_view architecture,
                                           const Tokenizer& tokenizer) {
  for (const Row& row : kRows)
    if (architecture.find(row.architecture) != architecture.npos &&
        std::all_of(row.needs.begin(), row.needs.end(),
                    [&](std::string_view token) { return tokenizer.token_id(token).has_value(); }))
      return ChatFormat(row, tokenizer);
  return std::nullopt;
}

ChatFormat::ChatFormat(const Row& row, const Tokenizer& tokenizer) : row_(&row) {
  for (const std::string_view stop : row.stops)
    if (const auto id = tokenizer.token_id(stop)) stop_ids_.push_back(*id);
}

std::string_view ChatFormat::name() const { return row_->name; }

std::vector<TextPiece> ChatFormat::render(std::span<const Message> messages,
                                          const ChatOptions& options) const {
  require(!messages.empty(), "a conversation without a message");
  enum Role { kSystem, kUser, kAssistant };
  const auto role_of = [](const Message& message) {
    constexpr std::string_view kNames[] = {"system", "user", "assistant"};
    const auto* const found = std::find(std::begin(kNames), std::end(kNames), message.role);
    require(found != std::end(kNames),
            "a message has the role \"{}\", expected system, user or assistant", message.role);
    return static_cast<Role>(found - std::begin(kNames));
  };
  std::vector<TextPiece> pieces;
  const auto control = [&](std::string_view text) { pieces.push_back({std::string(text), true}); };
  const auto open = [&](Role role) { control(fill(row_->before, "{role}", row_->roles[role])); };
  std::string preamble = fill(row_->system_preamble, "{date}", options.date);
  const auto block = [&](Role role, std::string_view text) {
    open(role);
    std::string content(row_->trims ? trim(text) : text);
    if (role == kSystem) content = std::exchange(preamble, "") + content;
    // An answer may hold control tokens: the model itself wrote them, around its thinking.
    pieces.push_back({std::move(content), /*parse_special=*/role == kAssistant});
    control(role == kAssistant ? row_->after_answer : row_->after);
  };

  const auto last_question =
      std::find_if(messages.rbegin(), messages.rend(), [&](const Message& message) {
        return role_of(message) == kUser;
      }).base();
  control(row_->bos);
  if (row_->default_system && role_of(messages.front()) != kSystem)
    block(kSystem, *row_->default_system);
  for (auto message = messages.begin(); message != messages.end(); ++message) {
    const Role role = role_of(*message);
    const bool is_old_answer = role == kAssistant && message < last_question;
    std::vector<std::string> texts = message->parts;
    if (!row_->part_is_block) texts = {fmt::format("{}", fmt::join(message->parts, "\n\n"))};
    for (const std::string_view text : texts)
      block(role, is_old_answer && row_->drops_old_thinking ? without_thinking(text) : text);
  }
  open(kAssistant);
  if (!options.enable_thinking) control(row_->no_thinking);
  return pieces;
}

std::vector<int32_t> ChatFormat::encode_chat(const Tokenizer& tokenizer,
                                             std::span<const Message> messages,
                                             const ChatOptions& options) const {
  return tokenizer.encode(render(messages, options), /*add_bos=*/false);
}

}  // namespace ei
