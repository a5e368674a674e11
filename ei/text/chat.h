#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/text/message.h"
#include "ei/text/tokenizer.h"

namespace ei {

struct ChatOptions {
  bool enable_thinking = true;       // for models that can also answer without (Qwen3)
  std::string date = "26 Jul 2024";  // what Llama 3.1's system block says; this is its default
};

// How conversations are written for one model.
class ChatFormat {
 public:
  // By the architecture ("Qwen3ForCausalLM") and the control tokens of the vocabulary; nothing when
  // no format is known for them.
  static std::optional<ChatFormat> find(std::string_view architecture, const Tokenizer& tokenizer);

  std::string_view name() const;  // "llama-3.1"

  // The conversation as text, up to where the model's answer begins, with one BOS if the model
  // wants one. The text of the system and of users is literal: control tokens spelt out in it are
  // not obeyed. (Hugging Face obeys them; text without them gets the ids Hugging Face gives.)
  // Throws Error for an unknown role and when there is no message.
  std::vector<TextPiece> render(std::span<const Message> messages,
                                const ChatOptions& options = {}) const;

  // The same as ids.
  std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, std::span<const Message> messages,
                                   const ChatOptions& options = {}) const;

  // Tokens that end an answer, beside those that the checkpoint's configuration names.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }

 private:
  struct Row;
  static const Row kRows[];
  ChatFormat(const Row& row, const Tokenizer& tokenizer);

  const Row* row_;
  std::vector<int32_t> stop_ids_;
};

}  // namespace ei
