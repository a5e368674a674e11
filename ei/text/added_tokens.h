#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
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
  std::vector<AddedToken> tokens_;
  std::array<std::vector<uint32_t>, 256> by_first_byte_;  // indices into tokens_, longest first
};

}  // namespace ei
