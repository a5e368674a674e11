#pragma once

#include <string>
#include <vector>

#include "apps/eval/document.h"

namespace ei::eval {

// What can be asked of a long text, in RULER's manner and in the words that needle-8m knows:
//   single        the value of the only needle
//   many-keys     the value of one needle among eight
//   many-values   the four values of one key
//   several-keys  the values of three of the eight
//   chain         three variables that are assigned a value one through the other
//   quote         how a passage goes on
// All but the first ask about the same document.
const std::vector<std::string>& task_names();

struct SampleSpec {
  std::string task;
  int64_t n_tokens = 4096;  // of the document, question and answer together, about
  double depth = 0.5;  // where what is asked for stands: share of the text before it. Several facts
                       // spread over the text, each in a stretch of its own, instead
  uint64_t seed = 1;
  std::string haystack;  // text whose sentences fill the document; empty: made-up ones
};

// A document and a question on it.
struct Sample {
  std::string document, question;
  std::vector<std::string> expected;  // an answer should contain all of them; of a quotation, its
                                      // first word, its first two, and so on
};

// The same spec and counts give the same sample. Throws Error when the task is not known or the
// length leaves no room for the facts.
Sample make_sample(const SampleSpec& spec, const TokenCounter& count);

// Whether `task` has one place in the text that is asked for: depth means something.
bool has_depth(const std::string& task);

// Share of what was expected that the answer contains, or with `any` whether it contains some of
// it; capitals do not count (RULER's string_match_all and string_match_part).
double score(const std::vector<std::string>& expected, const std::string& answer, bool any = false);

}  // namespace ei::eval
