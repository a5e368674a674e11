#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ei {

// The precompiled_charsmap of a SentencePiece model: a double-array trie from UTF-8 strings to
// their replacements.
//
//   u32 trie_bytes; u32 units[trie_bytes / 4]; NUL-terminated replacements      (little-endian)
//   unit: bit 8 = has a value; bits 0..30 = the value, an offset into the replacements;
//   bits 0..7 and 31 = label; (unit >> 10) << ((unit & 0x200) >> 6) = offset to the children
class CharsMap {
 public:
  // Without bytes, a map that replaces nothing. Throws Error naming `where` when the sizes
  // disagree.
  CharsMap(std::string_view bytes, std::string_view where);

  // The longest rule at the head of `text`: how many bytes it takes, 0 when there is none. A trie
  // that points outside itself has no rule there.
  size_t match(std::string_view text, std::string_view& replacement) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace ei
