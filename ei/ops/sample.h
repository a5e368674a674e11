#pragma once

#include <span>

#include "ei/ops/tensor.h"
#include "ei/policy/sampling.h"

namespace ei {

// Picks the next token of every row as policy/sampling.h describes. Only ids below n_tokens are
// eligible: embedding tables are padded beyond the tokenizer's last id. The draw takes the first
// token, in order of ids, at which the probabilities of what is left add up to more than the random
// number.
// Ties go to the lower id; the same seed and step give the same token on every backend up to
// rounding of the probabilities.
struct Sample {
  struct Row {
    SamplingParams params;
    uint64_t step = 0;               // of this sequence: the random number is f(seed, step)
    View<const int32_t, 1> history;  // tokens the repetition penalty applies to
  };
  Act logits;                 // [n, vocab_size]; may be changed
  std::span<const Row> rows;  // [n]
  int64_t n_tokens = 0;
  View<int32_t, 1> token;  // out: [n]
};
void check(const Sample& op);

}  // namespace ei
