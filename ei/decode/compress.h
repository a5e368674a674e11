#pragma once

#include "ei/cache/kv_cache.h"
#include "ei/cache/query_window.h"
#include "ei/ops/backend.h"
#include "ei/policy/decode_policy.h"

namespace ei {

// Shrinks one sequence's cache to what its newest queries look at (method.md section 2): when to do
// it, and how.
class Compressor {
 public:
  // n_prompt: tokens of the prompt; one no longer than the budget is not compressed for its gap.
  Compressor(const DecodePolicy& policy, int64_t n_prompt) : policy_(policy), n_prompt_(n_prompt) {}

  // Queries the policy wants remembered.
  static int64_t window_rows(const DecodePolicy& policy);

  // True once `gap` tokens were decoded, and again whenever the heads have grown `regrow` rows past
  // the budget, on average: they may hold different numbers of rows. To be asked after the prefill
  // and after every step.
  bool due(const KvCache& cache) const;

  void run(Backend& backend, KvCache& cache, const QueryWindow& window, int64_t n_heads) const;

 private:
  void keep_voted(Backend& backend, KvCache& cache, int layer, const QueryWindow& window,
                  int64_t n_heads) const;

  DecodePolicy policy_;
  int64_t n_prompt_;
};

}  // namespace ei
