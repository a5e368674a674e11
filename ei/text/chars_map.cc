#include "ei/text/chars_map.h"

#include "ei/base/fail.h"
#include "ei/base/utf8.h"

namespace ei {
namespace {

uint32_t read_u32(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }
uint32_t label(uint32_t unit) { return unit & 0x800000FF; }

}  // namespace

CharsMap::CharsMap(std::string_view bytes, std::string_view where) {
  if (bytes.empty()) return;
  const size_t trie_bytes = bytes.size() < 4 ? 0 : read_u32(bytes);
  require(trie_bytes >= 4 && trie_bytes % 4 == 0 && trie_bytes < bytes.size() - 4,
          "{}: precompiled_charsmap of {} bytes has a trie of {} bytes", where, bytes.size(),
          trie_bytes);
  for (size_t i = 0; i < trie_bytes; i += 4) units_.push_back(read_u32(bytes.substr(4 + i)));
  replacements_ = bytes.substr(4 + trie_bytes);
  require(replacements_.back() == '\0', "{}: precompiled_charsmap does not end with NUL", where);
  require_utf8(replacements_, fmt::format("{}: precompiled_charsmap", where));
}

size_t CharsMap::match(std::string_view text, std::string_view& replacement) const {
  if (units_.empty()) return 0;
  size_t longest = 0;
  size_t node = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    node ^= static_cast<uint8_t>(text[i]);
    if (node >= units_.size() || label(units_[node]) != static_cast<uint8_t>(text[i])) break;
    const uint32_t unit = units_[node];
    node ^= offset(unit);
    if (!(unit >> 8 & 1) || node >= units_.size()) continue;
    const size_t at = units_[node] & 0x7FFFFFFF;
    // An offset inside a character would give half of it.
    if (at >= replacements_.size() || (static_cast<uint8_t>(replacements_[at]) & 0xC0) == 0x80)
      continue;
    longest = i + 1;
    replacement = replacements_.c_str() + at;
  }
  return longest;
}

}  // namespace ei
