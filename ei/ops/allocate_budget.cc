#include "ei/ops/allocate_budget.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const AllocateBudget& op) {
  constexpr const char* kOp = "AllocateBudget";
  expect_dim(kOp, "blocks.dim(0)", op.blocks.dim(0), op.entropy.dim(2));
  expect_dims(kOp, "tokens", op.tokens, op.blocks.dims);
  expect_at_least(kOp, "first_segment", op.first_segment, 0);
  expect_multiple(kOp, "segment", op.segment, op.block);
  expect_at_least(kOp, "entropy.dim(0)", op.entropy.dim(0), op.first_segment + op.blocks.dim(1));
  expect_at_least(kOp, "layer", op.layer, 0);
  expect_at_least(kOp, "entropy.dim(1)", op.entropy.dim(1), op.layer + 1);
}

}  // namespace ei
