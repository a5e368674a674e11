#include "ei/ops/rms_norm.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const RmsNorm& op) {
  expect_dims("RmsNorm", "weight", op.weight, {op.x.cols});
  expect_shape("RmsNorm", "out", op.out, op.x.rows, op.x.cols);
}

}  // namespace ei
