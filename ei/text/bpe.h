#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ei {

// The merge rules of byte-pair encoding, for Hugging Face's merge lists and SentencePiece's scored
// pieces alike: which neighbours become which symbol, and which rule goes first.
class BpeMerges {
 public:
  // The rule left, right -> merged. Lower ranks go first. Of two rules for one pair the later
  // holds.
  void add(int32_t left, int32_t right, int32_t rank, int32_t merged);

  // Until no rule applies, merges the pair of the lowest rank, the leftmost of equals.
  // O(n log n) for n symbols.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Rule {
    uint64_t pair = kNoPair;  // left in the high half
    int32_t rank = 0, merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const Rule* find(int32_t left, int32_t right) const;
  void apply_short(std::vector<int32_t>& symbols) const;
  void apply_long(std::vector<int32_t>& symbols) const;
  size_t slot(uint64_t pair) const;
  void grow();

  std::vector<Rule> rules_;  // open addressing; the size is a power of two, at most half full
  size_t n_rules_ = 0;
};

// Where in `ids` the ids of each word of one text are, so that a word is merged once. Keeps views
// into the text; nothing else may change `ids` meanwhile but by appending.
class WordCache {
 public:
  // Appends the ids of `word`, calling encode(word, ids) when it is new.
  template <class Encode>
  void append(std::string_view word, std::vector<int32_t>& ids, Encode encode) {
    constexpr size_t kLongest = 64;  // longer ones hardly ever come again
    if (word.size() > kLongest) return encode(word, ids);
    const auto [it, is_new] = words_.try_emplace(word);
    auto& [begin, count] = it->second;
    if (is_new) {
      begin = static_cast<uint32_t>(ids.size());
      encode(word, ids);
      count = static_cast<uint32_t>(ids.size()) - begin;
    } else {
      ids.resize(ids.size() + count);
      std::copy_n(ids.begin() + begin, count, ids.end() - count);
    }
  }

 private:
  std::unordered_map<std::string_view, std::pair<uint32_t, uint32_t>> words_;  // begin, count
};

}  // namespace ei
