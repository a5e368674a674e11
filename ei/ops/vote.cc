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
  const int64_t n_votes = op.kv.rows_bound - op.n_queries;
  expect_at_least(kOp, "votes.dim(1)", op.votes.dim(1), n_votes);
  if (op.query_weights.data != nullptr)
    expect_dims(kOp, "query_weights", op.query_weights, {op.n_queries});
  if (op.row_weights.data != nullptr) {
    expect_dim(kOp, "row_weights.dim(0)", op.row_weights.dim(0), heads);
    expect_at_least(kOp, "row_weights.dim(1)", op.row_weights.dim(1), n_votes);
  }
}

void check(const ValueNorms& op) {
  constexpr const char* kOp = "ValueNorms";
  check(kOp, op.kv);
  const int64_t heads = op.gram.dim(0), d = op.kv.layout.head_dim;
  expect_multiple(kOp, "gram.dim(0)", heads, op.kv.n_kv_heads());
  expect_dims(kOp, "gram", op.gram, {heads, d, d});
  expect_dim(kOp, "norms.dim(0)", op.norms.dim(0), heads);
  expect_at_least(kOp, "norms.dim(1)", op.norms.dim(1), op.kv.rows_bound);
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
