#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace ei::eval {

// Stands for a tokenizer.
inline int64_t count_words(std::string_view text) {
  return std::count(text.begin(), text.end(), ' ') + 1;
}

inline size_t occurrences(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace ei::eval
