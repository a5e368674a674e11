#include "ei/ops/score_blocks.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const ScoreBlocks& op) {
  constexpr const char* kOp = "ScoreBlocks";
  check(kOp, op.kv);
  const int64_t kv_heads = op.kv.n_kv_heads(), block = op.kv.layout.block;
  expect_at_least(kOp, "block (0: the pages hold no key bounds)", block, 1);
  expect_multiple(kOp, "q.cols", op.q.cols, kv_heads * op.kv.layout.head_dim);
  expect_multiple(kOp, "segment", op.segment, block);
  expect_multiple(kOp, "begin", op.begin, op.segment);
  const int64_t first = op.begin / op.segment;
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  expect_dim(kOp, "score.dim(0)", op.score.dim(0), kv_heads);
  expect_dim(kOp, "entropy.dim(2)", op.entropy.dim(2), kv_heads);
  expect_at_least(kOp, "layer", op.layer, 0);
  expect_at_least(kOp, "entropy.dim(1)", op.entropy.dim(1), op.layer + 1);
  if (n_segments == 0) return;
  const int64_t past = (first + n_segments - 1) * op.segment;
  expect_at_least(kOp, "rows_bound", op.kv.rows_bound, past);
  expect_at_least(kOp, "score.dim(1)", op.score.dim(1), n_segments);
  expect_at_least(kOp, "score.dim(2)", op.score.dim(2), past / block);
  expect_at_least(kOp, "entropy.dim(0)", op.entropy.dim(0), first + n_segments);
}

}  // namespace ei
