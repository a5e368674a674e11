#pragma once

#include <functional>
#include <span>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/cache/query_window.h"
#include "ei/ops/backend.h"
#include "ei/policy/decode_policy.h"

namespace ei {

// Shrinks one sequence's cache to what its newest queries look at (METHOD.md section 2): when to do
// it, and how. Ranks that share the model do it at the same time, each to its heads: where heads
// compete, or are asked whether they agree, it is those of all ranks.
class Compressor {
 public:
  // n_prompt: tokens of the prompt; one no longer than the budget is not compressed for its gap.
  Compressor(const DecodePolicy& policy, int64_t n_prompt) : policy_(policy), n_prompt_(n_prompt) {}

  // Queries the policy wants remembered.
  static int64_t window_rows(const DecodePolicy& policy);

  // Device memory of run() for a cache of at most n_rows a head, beside the pages.
  static int64_t bytes(const DecodePolicy& policy, int64_t n_heads, int64_t n_kv_heads,
                       int64_t n_rows);

  // True once `gap` tokens were decoded, and again whenever the heads have grown `regrow` rows past
  // the budget, on average: they may hold different numbers of rows. An automatic gap is looked at
  // after the prompt and after every kLook tokens. To be asked after the prefill and after every
  // step.
  bool due(const KvCache& cache) const;

  // Rows that all ranks hold beside as many times this one's as there are ranks.
  int64_t rows_ahead() const { return rows_ahead_; }

  // Writes votes for all rows of a layer, [n_kv_heads, rows], where others vote than the window.
  using Votes = std::function<void(int layer, const View<float, 2>& votes)>;

  // Compresses. Ends an automatic gap only if in every layer and head the rows that would have been
  // kept at the last look have kSettled of the votes that the rows now kept have, or if a whole
  // window was written. votes: of policies whose voter is not the window.
  void run(Backend& backend, KvCache& cache, const QueryWindow& window, int64_t n_heads,
           const Votes& votes = {});

  static constexpr int64_t kLook = 4;
  static constexpr double kSettled = 0.95;

 private:
  // The pooled votes of a layer, for rows before those that are kept in any case.
  struct Ballot {
    DeviceArray<float, 2> votes;   // [n_heads, such rows, at most]
    std::vector<int32_t> n_votes;  // [n_heads] of them
    // Those of each head.
    std::vector<std::vector<float>> to_host(Backend& backend) const;
  };
  // What every head of a layer should keep.
  struct Choice {
    DeviceArray<int32_t, 2> rows;  // [n_heads, most]
    DeviceArray<int32_t, 1> count;
    std::vector<int32_t> n_kept;  // count, on the host
    Keep keep() const { return {rows.view(), count.view()}; }
  };
  Ballot vote(Backend& backend, const KvCache& cache, int layer, const QueryWindow& window,
              int64_t n_heads, const Votes& votes) const;
  Choice choose(Backend& backend, const KvCache& cache, int layer, const Ballot& ballot) const;
  Choice keep_top(Backend& backend, const Ballot& ballot, std::span<const int64_t> n_top) const;
  void share_globally(Backend& backend, KvCache& cache, const QueryWindow& window, int64_t n_heads,
                      const Votes& votes) const;
  bool settled(Backend& backend, const KvCache& cache, const QueryWindow& window, int64_t n_heads);

  DecodePolicy policy_;
  int64_t n_prompt_;
  int n_ranks_ = 1;
  int64_t rows_ahead_ = 0;
  std::vector<std::vector<int32_t>> looked_at_;  // [n_layers * n_heads] rows at the last look
};

}  // namespace ei
