#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ei/policy/decode_policy.h"
#include "ei/policy/prefill_policy.h"

namespace ei::bench {

// What is to be measured, as the command line says.
struct Options {
  bool on_gpu = false;                         // what computes
  std::vector<int64_t> prompts = {512, 8192};  // -p: tokens; 0: none
  std::vector<int64_t> answers = {32};         // -n: tokens; 0: none
  std::vector<int64_t> depths = {0};           // -d: tokens in the cache before an answer
  std::vector<std::string> prefills = {"dense", "entropy"};
  std::vector<std::string> decodes = {"full"};
  std::vector<int64_t> dense_layers;  // none: as the policy has it
  int64_t repetitions = 3;
};

// Reading a prompt of n tokens, or writing n tokens after a prompt of `depth`.
struct Work {
  enum class Kind : uint8_t { kRead, kWrite } kind = Kind::kRead;
  int64_t n = 0;
  int64_t depth = 0;

  std::string name() const;  // as llama-bench names them: pp8192, tg32, tg32 @ d32768
  int64_t prompt_tokens() const { return kind == Kind::kRead ? n : depth > 0 ? depth : 1; }
  // Tokens to be asked for: the first is made by reading the prompt and not timed.
  int64_t answer_tokens() const { return kind == Kind::kRead ? 1 : n + 1; }
};

// A way of doing it, one row of the table.
struct Case {
  std::string prefill_name;
  std::string decode_name;
  PrefillPolicy prefill;
  DecodePolicy decode;
};

// Work and the ways it is done in, whose repetitions take turns, so that whatever else the machine
// does meets all of them alike.
struct Group {
  Work work;
  std::vector<Case> cases;
};

// Prompts are read by every prefill policy. Answers are written by every decode policy, after a
// prompt read by the last prefill policy. Throws Error when nothing is to be measured.
std::vector<Group> make_plan(const Options& options);

// How long a prompt takes to read, in arbitrary units, to tell the time left: a term per token and
// one per pair that attention looks at.
double rough_cost(const Work& work, const Case& c);

}  // namespace ei::bench
