#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

void append_char(std::string& out, char32_t c);

// Calls f(character, its bytes) for each character of well-formed UTF-8, as all that follows is.
template <class F>
void for_each_char(std::string_view text, F&& f) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    f(c.value, text.substr(0, c.n_bytes));
    text.remove_prefix(c.n_bytes);
  }
}

std::string lower(std::string_view text);  // by the simple case mapping of Unicode

// Byte position of the first occurrence, npos when there is none. In linear time, whatever the
// texts are.
size_t find_text(std::string_view text, std::string_view wanted, size_t from = 0);

// Python's str.split() and strip(): at most `limit` splits when it is not negative; `separator` is
// not empty. White space is what str.isspace() says, four control characters more than is_space().
using Emit = std::function<void(std::string_view)>;
void split(std::string_view text, std::string_view separator, int64_t limit, const Emit& emit);
void split_at_spaces(std::string_view text, int64_t limit, const Emit& emit);
enum class Side { kLeft, kRight, kBoth };
std::string_view strip(std::string_view text, Side side);
std::string_view strip(std::string_view text, Side side, std::string_view chars);

// Normalization form C.
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
