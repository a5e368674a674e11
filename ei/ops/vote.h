#pragma once

#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"
#include "ei/policy/decode_policy.h"

namespace ei {

// Which cached rows the newest queries look at (METHOD.md 2.2). Query i of w is ring row
// (first + i) % window.rows, and sees what the i-th of the last w rows may see:
//   a[i,j]    = softmax over rows j <= n_rows - w + i of scale q_i . k_j
//   vote[h,j] = r[h,j] times the mean over i of s[i] a[i,j], for rows j < n_rows - w
// or their maximum, reduced (mean or max) over the G query heads of a KV head, or not at all:
// `votes` has n_kv_heads or n_heads rows and that decides. Numerics: float sums; NMSE 1e-8.
struct Vote {
  Act window;             // [>= w, n_heads * d] the ring of SaveQueries
  int64_t first = 0;      // ring row of the oldest query
  int64_t n_queries = 0;  // w
  KvLayer kv;             // every head holds more than w rows
  float scale = 1;        // 1 / sqrt(d), above 0
  GroupReduce reduce = GroupReduce::kMean;
  GroupReduce over_queries = GroupReduce::kMean;
  View<const float, 1> query_weights;  // s [w], at least 0; empty: 1
  View<const float, 2> row_weights;    // r [n_heads, >= rows_bound - w]; empty: 1
  View<float, 2> votes;                // out: [n_kv_heads or n_heads, >= rows_bound - w]
};
void check(const Vote& op);

// How long each cached value is after a matrix W of its query head's, of which the op has G = W^T
// W:
//   norms[h,j] = |W_h v_j| = sqrt(v_j^T G_h v_j)
// Numerics: float products; NMSE 1e-8.
struct ValueNorms {
  View<const float, 3> gram;  // G [n_heads, d, d], symmetric
  KvLayer kv;
  View<float, 2> norms;  // out: [n_heads, >= rows_bound]
};
void check(const ValueNorms& op);

// How much queries to come are expected to take of each cached row (METHOD.md section 4; Expected
// Attention). The queries of head h have a mean m and a covariance C, RoPE averaged in:
//   x[h,j] = scale m . k_j + scale^2 / 2 k_j^T C k_j     p[h,:] = softmax over the rows j >= sinks
//   vote[k,j] = |v_j| times the mean of p[h,j] over the G query heads of KV head k
// The first `sinks` rows get the highest vote of all. Numerics: float products; NMSE 1e-8.
struct ExpectVotes {
  View<const float, 2> mean;        // [n_heads, d]
  View<const float, 3> covariance;  // [n_heads, d, d], symmetric
  KvLayer kv;
  float scale = 1;  // 1 / sqrt(d)
  int64_t sinks = 0;
  View<float, 2> votes;  // out: [n_kv_heads, >= rows_bound]
};
void check(const ExpectVotes& op);

// Smooths votes along the rows with a 1-d pool of odd width `kernel`: maximum, or average with zero
// padding counted in the mean (METHOD.md 2.2; the reference's avg_pool1d and max_pool1d). kBoth: by
// an average of kNarrowPool and the maximum of `kernel` such averages, joined by both_pools().
struct PoolVotes {
  View<const float, 2> votes;      // [n_heads, m]
  View<const int32_t, 1> n_votes;  // [n_heads] valid columns of each row
  Pooling pooling = Pooling::kMax;
  int64_t kernel = 1;
  View<float, 2> out;  // [n_heads, m]; must not overlap votes
};
void check(const PoolVotes& op);

}  // namespace ei
