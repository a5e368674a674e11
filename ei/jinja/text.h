#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "ei/base/utf8.h"

// What Python's str does, on UTF-8: positions and counts are in characters (code points).
namespace ei::jinja {

int64_t count_chars(std::string_view text);
size_t char_offset(std::string_view text, int64_t n);  // in bytes, of character n or the end

// By the simple case mappings of Unicode, and "SS" for sharp s.
std::string upper(std::string_view text);
std::string title(std::string_view text);        // str.title()
std::string capitalize(std::string_view text);   // first character in title case, the rest lower
std::string title_words(std::string_view text);  // Jinja's filter: a word ends at -, (, {, [, <

std::string quote(std::string_view text);  // repr(): in quotes, escaped

}  // namespace ei::jinja
