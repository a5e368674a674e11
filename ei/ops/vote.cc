#include "ei/ops/vote.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const Vote& op) {
  constexpr const char* kOp = "Vote";
  check(kOp, op.kv);
  const int64_t kv_heads = op.kv.n_kv_heads(), heads = op.window.cols / op.kv.layout.head_dim;
  expect_multiple(kOp, "window.cols", op.window.cols, kv_heads * op.kv.layout.head_dim);
  expect_at_least(kOp, "n_queries", op.n_queries, 1);
  expect_at_least(kOp, "window.rows", op.window.rows, op.n_queries);
  require(op.first >= 0 && op.first < op.window.rows, "Vote: first is {}, expected 0 to {}",
          op.first, op.window.rows - 1);
  require(op.votes.dim(0) == kv_heads || op.votes.dim(0) == heads,
          "Vote: votes has {} rows, expected {} or {}", op.votes.dim(0), kv_heads, heads);
  require(op.scale > 0, "Vote: scale is {}, expected more than 0", op.scale);
  expect_at_least(kOp, "rows_bound", op.kv.rows_bound, op.n_queries);
  expect_at_least(kOp, "votes.dim(1)", op.votes.dim(1), op.kv.rows_bound - op.n_queries);
}

void check(const ExpectVotes& op) {
  constexpr const char* kOp = "ExpectVotes";
  check(kOp, op.kv);
  const int64_t kv_heads = op.kv.n_kv_heads(), heads = op.mean.dim(0), d = op.kv.layout.head_dim;
  expect_multiple(kOp, "mean.dim(0)", heads, kv_heads);
  expect_dims(kOp, "mean", op.mean, {heads, d});
  expect_dims(kOp, "covariance", op.covariance, {heads, d, d});
  expect_at_least(kOp, "sinks", op.sinks, 0);
  expect_dim(kOp, "votes.dim(0)", op.votes.dim(0), kv_heads);
  expect_at_least(kOp, "votes.dim(1)", op.votes.dim(1), op.kv.rows_bound);
}

void check(const PoolVotes& op) {
  constexpr const char* kOp = "PoolVotes";
  expect_dims(kOp, "out", op.out, op.votes.dims);
  expect_dims(kOp, "n_votes", op.n_votes, {op.votes.dim(0)});
  require(op.kernel > 0 && op.kernel % 2 == 1, "PoolVotes: kernel is {}, expected an odd number",
          op.kernel);
  require(op.votes.size() == 0 || op.out.data != op.votes.data, "PoolVotes: out is votes");
}

}  // namespace ei
