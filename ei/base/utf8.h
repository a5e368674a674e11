#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ei {

// Throws Error naming `where` and the offset of the first byte that is not part of well-formed
// UTF-8 (surrogates, overlong forms and values above U+10FFFF are malformed).
void require_utf8(std::string_view text, std::string_view where);

// The code point at the head of non-empty bytes.
struct Utf8Char {
  enum Kind { kGood, kBad, kCut };  // kCut: the bytes end inside a sequence that is good so far
  char32_t value;                   // U+FFFD unless kGood
  size_t n_bytes;  // how many bytes it takes; of a malformed sequence, its longest good beginning
  Kind kind;
};
Utf8Char decode_utf8(std::string_view bytes);

bool is_space(char32_t c);  // the White_Space property
bool is_word(char32_t c);   // letters, marks, digits and connectors: \w of a regular expression

// Normalization form C of well-formed UTF-8.
std::string nfc(std::string_view text);

// Turns bytes that arrive in pieces into well-formed UTF-8, and never gives out half a character.
class Utf8Stream {
 public:
  // What a malformed sequence becomes: one U+FFFD for each of its bytes (SentencePiece), or one for
  // each longest good beginning (Hugging Face, web browsers).
  enum class Errors { kEachByte, kEachSequence };
  explicit Utf8Stream(Errors errors) : errors_(errors) {}

  std::string push(std::string_view bytes);
  std::string finish();  // what is left: a character cut short is malformed

 private:
  std::string drain(bool all);

  Errors errors_;
  std::string tail_;
};

}  // namespace ei
