#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/base/utf8.h"
#include "ei/text/added_tokens.h"

namespace ei {

// A stretch of text to encode. Where `parse_special` is false, the strings of control tokens
// ("<|im_end|>") are ordinary text: a document cannot end the message that carries it.
struct TextPiece {
  std::string text;
  bool parse_special = true;
};

// What a tokenizer knows of its ids, whichever file it came from.
struct Vocabulary {
  struct Token {
    std::string bytes;     // what it decodes to; need not be UTF-8 by itself
    bool special = false;  // left out by decode(skip_special)
    bool added = false;    // decodes to its own text, whatever surrounds it
    bool byte = false;     // SentencePiece: stands for one byte, which may be a space of the text
  };
  std::vector<Token> tokens;    // by id; ids nobody uses have no bytes
  AddedTokens added;            // recognised in the text before anything else is done to it
  std::vector<int32_t> prefix;  // what encode(add_bos) puts in front: nothing, or BOS
  std::vector<int32_t> suffix;  // and behind: nothing, or EOS where texts become embeddings
  std::optional<int32_t> bos, eos;
  Utf8Stream::Errors errors = Utf8Stream::Errors::kEachSequence;
  // decode() takes away the space that encode() puts in front: of the first token, or of each token
  // until one of them has more text than that.
  enum class FirstSpace { kKept, kDropped, kAllDropped } first_space = FirstSpace::kKept;
};

// Text to token ids and back, with the ids that Hugging Face's tokenizers or SentencePiece give.
// All methods are const and may be called from several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The strings of added and special tokens in the text are recognised, as Hugging Face does.
  // With `add_bos`, whatever the model's files put around a text is there: BOS in front for Llama,
  // nothing for Qwen, EOS behind for models of embeddings. Throws Error naming the byte offset when
  // the text is not UTF-8.
  std::vector<int32_t> encode(std::string_view text, bool add_bos) const;

  // The ids of the joined text, except for what TextPiece says: the borders of pieces are
  // invisible, so that text without control tokens in it has the ids of the one string.
  std::vector<int32_t> encode(std::span<const TextPiece> pieces, bool add_bos) const;

  // The byte offsets, ascending, at which the strings of control tokens begin in the text.
  virtual std::vector<size_t> special_places(std::string_view text) const;

  // The text of `ids`, always UTF-8: malformed bytes become U+FFFD. Ids outside the vocabulary have
  // no text. A tokenizer that puts a space in front of every text (SentencePiece) drops it here.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  int32_t vocab_size() const { return static_cast<int32_t>(vocabulary_.tokens.size()); }
  std::string token_bytes(int32_t id) const;  // raw; a special token's text; "" for unknown ids
  bool is_special(int32_t id) const;
  std::optional<int32_t> bos_id() const { return vocabulary_.bos; }
  std::optional<int32_t> eos_id() const { return vocabulary_.eos; }

  // The id of exactly this token, written as in the model's file ("<|im_end|>", "Ġthe", "▁the").
  std::optional<int32_t> token_id(std::string_view token) const;

 protected:
  explicit Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  // Appends the ids of a stretch of text with no added token in it. `parse_special` as in
  // TextPiece.
  virtual void encode_text(std::string_view text, bool parse_special,
                           std::vector<int32_t>& ids) const = 0;
  virtual std::optional<int32_t> find_token(std::string_view token) const = 0;

  const Vocabulary vocabulary_;

 private:
  friend class StreamDecoder;
};

// decode() while the ids come one at a time: the pieces it returns, joined, are what decode()
// gives, and none of them ends inside a character. Outlived by the tokenizer.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);

  std::string push(int32_t id);
  std::string finish();  // what is held back, as U+FFFD

 private:
  const Vocabulary& vocabulary_;
  bool skip_special_;
  bool at_start_ = true;
  Utf8Stream stream_;
};

// The tokenizer of a Hugging Face directory: tokenizer.json (byte-level BPE), else tokenizer.model
// (SentencePiece BPE), each with what tokenizer_config.json says. Throws Error when there is
// neither, or naming what in the file is malformed or not supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& model_dir);

}  // namespace ei
