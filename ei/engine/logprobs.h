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

// Rows of logits, copied to the host at once: for those who ask for reports.
class LogitRows {
 public:
  LogitRows(Backend& backend, const Act& logits);

  // On `chosen` and the n_top likeliest ids below n_tokens, in place of the token after `row`.
  TokenReport report(int64_t row, int32_t chosen, int64_t n_top, int64_t n_tokens) const;
  std::span<const float> operator[](int64_t row) const {
    return std::span(logits_).subspan(static_cast<size_t>(row) * n_cols_, n_cols_);
  }

 private:
  size_t n_cols_;
  std::vector<float> logits_;
};

// Whether rows of activations or logits hold neither NaN nor infinity.
bool is_finite(Backend& backend, const Act& rows);

}  // namespace ei
