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

// The pieces of the above, for other documents.

// Sentences, one after another, for ever.
using Sentences = std::function<std::string()>;
Sentences made_up_sentences(uint64_t seed);
// Those of a text, from one that the seed chooses on, round and round. Throws Error when there is
// none; `name` is the text's.
Sentences sentences_of(std::string_view text, const std::string& name, uint64_t seed);

// n needles of different keys and values.
std::vector<Needle> make_needles(int64_t n, uint64_t seed);

struct Placed {
  std::string sentence;
  int64_t at = 0;  // tokens before it
};
// About n_tokens tokens of sentences, with the placed ones, in order of `at`, among them.
std::string write_document(int64_t n_tokens, const std::vector<Placed>& placed,
                           const Sentences& sentences, const TokenCounter& count);

}  // namespace ei::eval
