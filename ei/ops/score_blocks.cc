#include "ei/ops/score_blocks.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const ScoreBlocks& op) {
  constexpr const char* kOp = "ScoreBlocks";
  const int64_t kv_heads = op.score.dim(0), d = op.bounds.min.dim(2);
  check(kOp, op.bounds, kv_heads, d);
  expect_at_least(kOp, "head_dim", d, 1);
  expect_multiple(kOp, "q.cols", op.q.cols, kv_heads * d);
  expect_multiple(kOp, "segment", op.segment, op.bounds.block);
  expect_multiple(kOp, "begin", op.begin, op.segment);
  const int64_t first = op.begin / op.segment;
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  expect_dim(kOp, "entropy.dim(0)", op.entropy.dim(0), kv_heads);
  if (n_segments == 0) return;
  const int64_t past = (first + n_segments - 1) * op.segment / op.bounds.block;
  expect_at_least(kOp, "bounds.min.dim(1)", op.bounds.min.dim(1), past);
  expect_at_least(kOp, "score.dim(1)", op.score.dim(1), n_segments);
  expect_at_least(kOp, "score.dim(2)", op.score.dim(2), past);
  expect_at_least(kOp, "entropy.dim(1)", op.entropy.dim(1), first + n_segments);
}

}  // namespace ei
