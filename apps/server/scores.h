#pragma once

#include <cstdint>
#include <string>

#include "ei/engine/logprobs.h"
#include "ei/text/tokenizer.h"

namespace ei::server {

// The log-probabilities of an answer's tokens in the form of the API asked, written token by token:
// as a tree of values a long answer's would take many times the memory of its text.
class Scores {
 public:
  Scores(const Tokenizer& tokenizer, bool chat) : tokenizer_(tokenizer), chat_(chat) {}

  // `offset`: of the token in the text, in characters, as clients' strings count; moved behind it.
  void add(const TokenReport& report, int64_t& offset);
  void add_first(int32_t token, int64_t& offset);  // of a prompt: it has no score
  std::string json() const;

 private:
  void add_place(int32_t token, int64_t& offset);
  std::string text(int32_t token) const { return tokenizer_.decode({{token}}, false); }

  const Tokenizer& tokenizer_;
  bool chat_;
  std::string content_;                          // of a chat
  std::string tokens_, scores_, tops_, places_;  // of a completion
};

}  // namespace ei::server
