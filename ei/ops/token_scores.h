#pragma once

#include "ei/ops/tensor.h"

namespace ei {

// For every row of logits the log-probability of a target token, in nats, and the likeliest token
// (ties to the lower id). Numerics: log-sum-exp in float with the maximum subtracted, 1e-5
// absolute.
struct TokenScores {
  Act logits;                      // [n, vocab_size]
  View<const int32_t, 1> targets;  // [n]
  View<float, 1> logprob;          // out: [n]
  View<int32_t, 1> argmax;         // out: [n]
};
void check(const TokenScores& op);

}  // namespace ei
