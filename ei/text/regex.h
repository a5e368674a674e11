#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ei {

// A compiled regular expression that cuts text into its matches and the gaps between them, as the
// Split pre-tokenizer of Hugging Face does.
//
// The syntax is Perl's (PCRE2) with Unicode classes; of what tokenizers use, it agrees with the
// Oniguruma of Hugging Face.
class SplitRegex {
 public:
  // What becomes of a match: a piece of its own; nothing; one piece with the matches or gaps beside
  // it; the end of the gap before it; the beginning of the gap behind it.
  enum class Behavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

  // With `invert`, gaps are what matches are otherwise. Throws Error naming `where` when the
  // pattern is not a regular expression.
  SplitRegex(std::string_view pattern, std::string_view where,
             Behavior behavior = Behavior::kIsolated, bool invert = false);
  ~SplitRegex();
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;

  // The pieces of well-formed UTF-8, none of them empty; joined, they are `text`, unless matches
  // are removed. Throws Error when the pattern needs too many steps.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace ei
