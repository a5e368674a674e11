#pragma once

#include <span>

#include "ei/ops/tensor.h"
#include "ei/policy/sampling.h"

namespace ei {

struct LogitBias {
  int32_t token = 0;
  float bias = 0;  // -infinity: never drawn
};

// Picks the next token of every row as policy/sampling.h describes; the logits stay as they are.
// Only ids below n_tokens are eligible: embedding tables are padded beyond the tokenizer's last id.
// The draw takes the first token, in order of ids, at which the probabilities of what is left add
// up to more than the random number. Ties go to the lower id. A row's token does not depend on the
// other rows; the same seed and step give the same one on every backend up to rounding of the
// probabilities, which is 1e-5 of all.
struct Sample {
  // In place of a token: an eligible logit is NaN or infinite; no token is left, all are banned.
  static constexpr int32_t kNotFinite = -1, kNoneLeft = -2;

  struct Row {
    SamplingParams params;
    int64_t logits_row = 0;           // rows may share one
    int64_t step = 0;                 // tokens drawn before: the random number is f(seed, step)
    View<const LogitBias, 1> biases;  // those of one token are added up
    // Bit i % 32 of word i / 32: whether token i may be drawn, n_tokens of them. Empty: all may.
    View<const uint32_t, 1> allowed;
    // What penalties count: n_prompt tokens of the prompt, then the `step` drawn ones. This one is
    // stored behind them. Empty: nothing is counted.
    View<int32_t, 1> history;
    int64_t n_prompt = 0;
  };
  Act logits;                 // [n_logits, vocab_size]
  std::span<const Row> rows;  // [n]; what they view is device memory
  int64_t n_tokens = 0;
  View<int32_t, 1> token;  // out: [n]
};
void check(const Sample& op);

}  // namespace ei
