#include "ei/ops/collectives.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const AllGather& op, int n_ranks) {
  expect_shape("AllGather", "out", op.out, op.part.rows, n_ranks * op.part.cols);
  expect_dim("AllGather", "part.elem_bytes", op.part.elem_bytes, sizeof(float));
  expect_dim("AllGather", "out.elem_bytes", op.out.elem_bytes, sizeof(float));
}

}  // namespace ei
