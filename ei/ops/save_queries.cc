#include "ei/ops/save_queries.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const SaveQueries& op) {
  constexpr const char* kOp = "SaveQueries";
  expect_multiple(kOp, "n", op.q.rows, std::ssize(op.rings));
  expect_dim(kOp, "the number of positions", std::ssize(op.positions), std::ssize(op.rings));
  for (const Act& ring : op.rings) {
    expect_at_least(kOp, "the window", ring.rows, 1);
    expect_dim(kOp, "the width of a ring", ring.cols, op.q.cols);
  }
  for (const int64_t position : op.positions) expect_at_least(kOp, "a position", position, 0);
}

}  // namespace ei
