#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace ei::eval {

// A fact that a document states in one sentence: "One of the special magic numbers for
// quiet-harbor is: 4821097.", the words that needle-8m was trained on.
struct Needle {
  std::string key;    // two words with a hyphen
  std::string value;  // 7 digits
  std::string fact() const;
  std::string question() const;
};

struct Document {
  std::string text;
  std::vector<Needle> needles;  // in the order of the text
};

struct DocumentSpec {
  int64_t n_tokens = 32000;
  int64_t n_needles = 8;  // one in each of as many equal stretches of the text
  uint64_t seed = 1;
};

// How many tokens a model makes of a text.
using TokenCounter = std::function<int64_t(std::string_view)>;

// Made-up sentences of about n_tokens tokens (the sum of what `count` says for each; it ends with
// the sentence that reaches them) with needles among them. The same spec and counts give the same
// text.
Document make_document(const DocumentSpec& spec, const TokenCounter& count);

}  // namespace ei::eval
