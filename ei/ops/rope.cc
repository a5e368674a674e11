#include "ei/ops/rope.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const RopeAngles& op) {
  const std::array<int64_t, 2> dims = {op.positions.dim(0), op.inv_freq.dim(0)};
  expect_dims("RopeAngles", "cos", op.cos, dims);
  expect_dims("RopeAngles", "sin", op.sin, dims);
}

void check(const Rope& op) {
  expect_dim("Rope", "cos.dim(0)", op.cos.dim(0), op.x.rows);
  expect_dims("Rope", "sin", op.sin, op.cos.dims);
  expect_multiple("Rope", "x.cols", op.x.cols, 2 * op.cos.dim(1));
}

}  // namespace ei
