#include "ei/ops/estimate_mass.h"

#include <algorithm>

#include "ei/ops/shapes.h"

namespace ei {

void check(const EstimateMass& op) {
  constexpr const char* kOp = "EstimateMass";
  check(kOp, op.kv);
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim;
  require(op.estimate != Estimate::kBounds, "{}: bounds are scored by ScoreBlocks", kOp);
  expect_multiple(kOp, "q.cols", op.q.cols, kv_heads * d);
  expect_multiple(kOp, "segment", op.segment, op.block);
  expect_multiple(kOp, "begin", op.begin, op.segment);
  if (op.estimate == Estimate::kAntidiagonals) expect_multiple(kOp, "block", op.block, op.stride);
  const int64_t first = op.begin / op.segment;
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  const bool estimates =
      std::max(op.dense_before, first) < std::min(op.dense_from, first + n_segments);
  if (op.estimate == Estimate::kSketch && estimates) {
    const int64_t w = op.basis.n_directions();
    expect_at_least(kOp, "basis.directions.dim(1)", w, 4);
    expect_multiple(kOp, "basis.directions.dim(1)", w, 4);
    expect_dims(kOp, "basis.directions", op.basis.directions, {kv_heads, w, d});
    expect_dims(kOp, "basis.mean", op.basis.mean, {kv_heads, w});
  }
  expect_dim(kOp, "mass.dim(0)", op.mass.dim(0), kv_heads);
  expect_dim(kOp, "own.dim(0)", op.own.dim(0), kv_heads);
  expect_dim(kOp, "entropy.dim(2)", op.entropy.dim(2), kv_heads);
  expect_at_least(kOp, "layer", op.layer, 0);
  expect_at_least(kOp, "entropy.dim(1)", op.entropy.dim(1), op.layer + 1);
  expect_at_least(kOp, "dense_before", op.dense_before, 0);
  if (n_segments == 0) return;
  require(op.dense_from <= first + op.q.rows / op.segment || op.q.rows % op.segment == 0,
          "{}: the last of {} rows is not the end of a segment of {}, and the segment not dense",
          kOp, op.q.rows, op.segment);
  expect_at_least(kOp, "rows_bound", op.kv.rows_bound, op.begin + op.q.rows);
  expect_at_least(kOp, "mass.dim(1)", op.mass.dim(1), n_segments);
  expect_at_least(kOp, "own.dim(1)", op.own.dim(1), n_segments);
  expect_at_least(kOp, "mass.dim(2)", op.mass.dim(2),
                  (first + n_segments - 1) * op.segment / op.block);
  expect_at_least(kOp, "entropy.dim(0)", op.entropy.dim(0), first + n_segments);
}

}  // namespace ei
