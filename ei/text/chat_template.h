#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/io/json.h"
#include "ei/jinja/template.h"
#include "ei/text/message.h"
#include "ei/text/tokenizer.h"

namespace ei {

struct ChatOptions {
  // What the template sees beside the messages: "tools", "enable_thinking" and what else it asks
  // for. May not replace the variables that are set here.
  OrderedJson variables = OrderedJson::object();
  // The day of the conversation, as strftime() writes it; templates may ask for it.
  std::function<std::string(std::string_view format)> strftime_now;
};

// How a checkpoint writes conversations: its Jinja template, rendered as Hugging Face does it, but
// for two things. The text of everybody but the assistant is literal: control tokens spelt out in
// it are not obeyed. And exactly one BOS is in front if the tokenizer puts one there, whether or
// not the template has it.
class ChatTemplate {
 public:
  // `names` has the special tokens ("bos_token": "<s>"); `tokenizer` is outlived by nothing here.
  // Throws Error "WHERE:LINE: what" when the source is no template.
  ChatTemplate(std::string_view source, std::string where, OrderedJson names,
               const Tokenizer& tokenizer);

  // The one of a Hugging Face directory: chat_template.jinja, else "chat_template" of
  // tokenizer_config.json (the one called "default" of several); nothing when there is none.
  static std::optional<ChatTemplate> load(const std::filesystem::path& model_dir,
                                          const Tokenizer& tokenizer);

  const std::string& where() const { return where_; }  // the file it comes from
  bool knows_tools() const { return knows_tools_; }

  // A list of messages in OpenAI's form, up to where the model's answer begins. A content that is a
  // list of text parts is handed on as a list to a template that understands lists, and joined with
  // blank lines for others. Throws Error when there is no message, or what the template says of
  // them (raise_exception).
  std::vector<TextPiece> render(const OrderedJson& messages, const ChatOptions& options = {}) const;
  // The same as ids.
  std::vector<int32_t> encode(const OrderedJson& messages, const ChatOptions& options = {}) const;

 private:
  std::string fill(const OrderedJson& messages, const ChatOptions& options) const;
  bool understands_parts() const;
  OrderedJson prepared(const OrderedJson& message) const;

  jinja::Template template_;
  std::string where_;
  OrderedJson names_;
  const Tokenizer* tokenizer_;
  bool knows_tools_ = false;
  bool takes_parts_ = false;
};

// In OpenAI's form: a message of one part has a string as its content, others a list of parts.
OrderedJson to_json(std::span<const Message> messages);

}  // namespace ei
