#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/io/json.h"
#include "ei/jinja/template.h"
#include "ei/text/answer_parser.h"
#include "ei/text/message.h"
#include "ei/text/tokenizer.h"

namespace ei {

struct ChatOptions {
  // What the template sees beside the messages: "tools", "enable_thinking" and what else it asks
  // for. May not replace the variables that are set here.
  OrderedJson variables = OrderedJson::object();
  bool add_generation_prompt = true;  // the header of the answer comes last
  // The day of the conversation, as strftime() writes it; templates may ask for it.
  std::function<std::string(std::string_view format)> strftime_now;
};

// How a checkpoint writes conversations: its Jinja template, rendered as Hugging Face does it, but
// for three things. The text of everybody but the assistant is literal: control tokens spelt out in
// it are not obeyed. Exactly one BOS is in front if the tokenizer puts one there, whether or not
// the template has it. And what OpenAI's messages may say in several ways is said in the one that
// the template writes best: a lone text or a list of parts, a tool call's arguments as an object or
// as JSON text, no content as null or "".
class ChatTemplate {
 public:
  // `names` has the special tokens ("bos_token": "<s>"); `tokenizer` is outlived by nothing here.
  // Throws Error "WHERE:LINE: what" when the source is no template.
  ChatTemplate(std::string_view source, std::string where, OrderedJson names,
               const Tokenizer& tokenizer);

  // The one of a Hugging Face directory: chat_template.jinja and additional_chat_templates/*.jinja,
  // else chat_template.json, else "chat_template" of tokenizer_config.json; nothing when there is
  // none. Of several the one called "default" is taken, and "tool_use" when there are tools.
  static std::optional<ChatTemplate> load(const std::filesystem::path& model_dir,
                                          const Tokenizer& tokenizer);

  const std::string& where() const { return default_.where; }  // the file it comes from
  // What the model writes beside text, as the template for tools shows.
  AnswerFormat answer_format() const { return (tool_use_ ? *tool_use_ : default_).answers; }
  bool knows_tools() const { return tool_use_ || default_.knows_tools; }

  // A list of messages in OpenAI's form, up to where the model's answer begins. A content that is a
  // list of text parts is handed on as a list to a template that understands lists, and joined with
  // blank lines for others. Throws Error when there is no message, or what the template says of
  // them (raise_exception).
  std::vector<TextPiece> render(const OrderedJson& messages, const ChatOptions& options = {}) const;
  // The same as ids.
  std::vector<int32_t> encode(const OrderedJson& messages, const ChatOptions& options = {}) const;

 private:
  // A template, and what it has been found to want.
  struct Style {
    Style(std::string_view source, std::string where, const OrderedJson& names);
    std::string fill(const OrderedJson& names, const OrderedJson& messages,
                     const ChatOptions& options, const jinja::Limits& limits = {}) const;

    jinja::Template source;
    std::string where;
    bool knows_tools;  // names them
    AnswerFormat answers;
    bool takes_parts = false;    // writes a list of one text as it writes the text
    bool takes_null = false;     // a content that is null is no text to it
    bool takes_strings = false;  // arguments of tool calls are JSON text to it
  };
  OrderedJson prepared(const OrderedJson& message, const Style& style) const;

  OrderedJson names_;
  const Tokenizer* tokenizer_;
  Style default_;
  std::optional<Style> tool_use_;
};

// In OpenAI's form: a message of one part has a string as its content, others a list of parts.
OrderedJson to_json(std::span<const Message> messages);

}  // namespace ei
