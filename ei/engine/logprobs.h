#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ei/ops/backend.h"

namespace ei {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;  // nats
};

// How likely the model held one token, and what it held likeliest in its place. Of the logits as
// the model made them: before penalties, biases and temperature.
struct TokenReport {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // likeliest first, ties to the lower id
};

// One row of logits, copied to the host: for those who ask for reports.
class LogitRow {
 public:
  LogitRow(Backend& backend, const Act& logits, int64_t row);

  // On `chosen` and the n_top likeliest ids below n_tokens.
  TokenReport report(int32_t chosen, int64_t n_top, int64_t n_tokens) const;
  std::span<const float> logits() const { return logits_; }

 private:
  TokenLogprob at(int32_t token) const {
    return {token, logits_[static_cast<size_t>(token)] - log_sum_};
  }

  std::vector<float> logits_;
  float log_sum_ = 0;
};

// Adds `bias` to the logit of one token in logits [1, vocab_size]. -infinity: never drawn.
void bias_logit(Backend& backend, const Act& logits, int32_t token, float bias);

}  // namespace ei
