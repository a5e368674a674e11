#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "ei/base/utf8.h"

// What Python's str does, on UTF-8: positions and counts are in characters (code points).
namespace ei::jinja {

bool is_ascii(std::string_view text);
int64_t count_chars(std::string_view text);
size_t char_offset(std::string_view text, int64_t n);  // in bytes, of character n or the end
void append_char(std::string& out, char32_t c);
bool is_python_space(char32_t c);  // str.isspace(): four control characters more than White_Space

// Calls f(character, its bytes) for each character.
template <class F>
void for_each_char(std::string_view text, F&& f) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    f(c.value, text.substr(0, c.n_bytes));
    text.remove_prefix(c.n_bytes);
  }
}

// Byte position of the first or the last occurrence, npos when there is none. In linear time,
// whatever the texts are.
size_t find_text(std::string_view text, std::string_view wanted, size_t from = 0);
size_t rfind_text(std::string_view text, std::string_view wanted);
int64_t count_text(std::string_view text, std::string_view wanted);  // without overlaps

enum class Side { kLeft, kRight, kBoth };
std::string_view strip(std::string_view text, Side side);
std::string_view strip(std::string_view text, Side side, std::string_view chars);

// The pieces one by one, those of rsplit from the right: at most `limit` splits when it is not
// negative. `separator` is not empty.
using Emit = std::function<void(std::string_view)>;
void split(std::string_view text, std::string_view separator, int64_t limit, const Emit& emit);
void rsplit(std::string_view text, std::string_view separator, int64_t limit, const Emit& emit);
void split_at_spaces(std::string_view text, int64_t limit, const Emit& emit);
void rsplit_at_spaces(std::string_view text, int64_t limit, const Emit& emit);
void split_lines(std::string_view text, bool keep_ends, const Emit& emit);

// By the simple case mappings of Unicode, and "SS" for sharp s.
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string title(std::string_view text);       // str.title()
std::string capitalize(std::string_view text);  // first character in title case, the rest lower
std::string swap_case(std::string_view text);
std::string title_words(std::string_view text);  // Jinja's filter: a word ends at -, (, {, [, <

// str.isalpha() and so on: "alpha", "alnum", "ascii", "decimal", "digit", "numeric", "space",
// "lower", "upper", "title". Digits beyond the decimal ones count as "numeric" alone.
bool has_class(std::string_view text, std::string_view name);

std::string escape_html(std::string_view text);
std::string reverse_text(std::string_view text);
std::string quote(std::string_view text);  // repr(): in quotes, escaped

}  // namespace ei::jinja
