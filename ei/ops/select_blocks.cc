#include "ei/ops/select_blocks.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const SelectBlocks& op) {
  constexpr const char* kOp = "SelectBlocks";
  const int64_t heads = op.blocks.dim(0), segments = op.blocks.dim(1);
  expect_dims(kOp, "out.count", op.out.count, op.blocks.dims);
  expect_dim(kOp, "score.dim(0)", op.score.dim(0), heads);
  expect_dim(kOp, "out.index.dim(0)", op.out.index.dim(0), heads);
  expect_at_least(kOp, "score.dim(1)", op.score.dim(1), segments);
  expect_dim(kOp, "out.index.dim(1)", op.out.index.dim(1), segments);
  expect_multiple(kOp, "segment", op.segment, op.block);
  expect_at_least(kOp, "first_segment", op.first_segment, 0);
  expect_at_least(kOp, "sink_blocks", op.sink_blocks, 0);
  expect_at_least(kOp, "recent_blocks", op.recent_blocks, 0);
  if (segments > 0)
    expect_at_least(kOp, "score.dim(2)", op.score.dim(2),
                    (op.first_segment + segments - 1) * op.segment / op.block);
}

}  // namespace ei
