#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ei {

// A compiled regular expression that cuts text, as the Split pre-tokenizer with behaviour
// "Isolated" does: every match is a piece and so is every gap between matches.
//
// The syntax is Perl's (PCRE2) with Unicode classes; of what tokenizers use, it agrees with the
// Oniguruma of Hugging Face.
class SplitRegex {
 public:
  // Throws Error naming `where` when the pattern is not a regular expression.
  SplitRegex(std::string_view pattern, std::string_view where);
  ~SplitRegex();
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;

  // The pieces of well-formed UTF-8, none of them empty; joined, they are `text`. Throws Error when
  // the pattern needs too many steps.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace ei
