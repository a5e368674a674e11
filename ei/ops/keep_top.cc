#include "ei/ops/keep_top.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const KeepTop& op) {
  constexpr const char* kOp = "KeepTop";
  const int64_t heads = op.votes.dim(0);
  expect_dims(kOp, "n_votes", op.n_votes, {heads});
  expect_dims(kOp, "out.count", op.out.count, {heads});
  expect_dim(kOp, "out.rows.dim(0)", op.out.rows.dim(0), heads);
  expect_at_least(kOp, "n_top", op.n_top, 0);
  expect_at_least(kOp, "window", op.window, 0);
  expect_at_least(kOp, "out.rows.dim(1)", op.out.rows.dim(1), op.n_top + op.window);
}

}  // namespace ei
