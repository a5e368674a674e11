#include "ei/ops/select_mass.h"

#include <algorithm>

#include "ei/ops/shapes.h"

namespace ei {

void check(const SelectMass& op) {
  constexpr const char* kOp = "SelectMass";
  const int64_t heads = op.out.count.dim(0), segments = op.out.count.dim(1);
  expect_dim(kOp, "mass.dim(0)", op.mass.dim(0), heads);
  expect_dim(kOp, "own.dim(0)", op.own.dim(0), heads);
  expect_dim(kOp, "out.index.dim(0)", op.out.index.dim(0), heads);
  expect_at_least(kOp, "mass.dim(1)", op.mass.dim(1), segments);
  expect_at_least(kOp, "own.dim(1)", op.own.dim(1), segments);
  expect_dim(kOp, "out.index.dim(1)", op.out.index.dim(1), segments);
  expect_multiple(kOp, "segment", op.segment, op.block);
  expect_at_least(kOp, "first_segment", op.first_segment, 0);
  expect_at_least(kOp, "sink", op.sink, 0);
  expect_at_least(kOp, "local", op.local, 0);
  const int64_t last = std::min(op.first_segment + segments, op.dense_from) - 1;
  if (segments == 0 || last < std::max(op.first_segment, op.dense_before)) return;
  const int64_t past = last * op.segment / op.block;
  expect_at_least(kOp, "mass.dim(2)", op.mass.dim(2), past);
  expect_at_least(kOp, "out.index.dim(2)", op.out.index.dim(2), past);
}

}  // namespace ei
