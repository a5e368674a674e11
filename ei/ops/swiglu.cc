#include "ei/ops/swiglu.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const SwiGlu& op) {
  expect_shape("SwiGlu", "up", op.up, op.gate.rows, op.gate.cols);
  expect_shape("SwiGlu", "out", op.out, op.gate.rows, op.gate.cols);
}

}  // namespace ei
