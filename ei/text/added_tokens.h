#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ei {

// A token whose string is looked for in the text as it is, before normalization and merging.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // a control token: not recognised in literal text
  bool normalized = false;   // looked for in the normalized text instead
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
};

struct TextRange {
  size_t begin, end;
};

// Finds added tokens as Hugging Face's AddedVocabulary does: the leftmost, of those the longest.
class AddedTokens {
 public:
  struct Match {
    size_t begin, end;  // in bytes, with the white space it takes
    int32_t id;
  };

  // Throws nothing; a token without content never matches.
  void add(AddedToken token);

  // Matches in text order. Special tokens that touch one of `literal` (ascending) are passed over.
  std::vector<Match> find(std::string_view text, std::span<const TextRange> literal) const;

  // Where the strings of special tokens begin in the text, ascending; they may overlap.
  std::vector<size_t> special_places(std::string_view text) const;

  // The longest token at this place of the text, or null. Special tokens must end by
  // `specials_end`.
  const AddedToken* longest_at(std::string_view text, size_t at,
                               size_t specials_end = std::string_view::npos) const;

  // The token with exactly this content, or null.
  const AddedToken* lookup(std::string_view content) const;

 private:
  // Calls f with each token whose content is at this place of the text, the shortest first.
  template <class F>
  void for_each_at(std::string_view text, size_t at, F f) const;

  std::vector<AddedToken> tokens_;
  std::bitset<256> first_bytes_;
  // A trie of their contents: the node behind a node (the root is 0) and a byte of the text.
  std::unordered_map<uint64_t, uint32_t> next_;
  std::vector<int32_t> token_of_ = {-1};  // by node: an index into tokens_, or -1
};

}  // namespace ei
