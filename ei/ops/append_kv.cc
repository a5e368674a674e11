#include "ei/ops/append_kv.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const AppendKv& op) {
  constexpr const char* kOp = "AppendKv";
  expect_shape(kOp, "v", op.v, op.k.rows, op.k.cols);
  expect_multiple(kOp, "n", op.k.rows, std::ssize(op.kv));
  for (const KvLayer& kv : op.kv) {
    check(kOp, kv);
    expect_multiple(kOp, "k.cols", op.k.cols, kv.head_dim);
    expect_multiple(kOp, "n_kv_heads", kv.n_kv_heads(), op.k.cols / kv.head_dim);
  }
  if (op.bounds.block == 0) return;
  expect_dim(kOp, "the number of sequences with bounds", std::ssize(op.kv), 1);
  const KvLayer& kv = op.kv[0];
  check(kOp, op.bounds, kv.n_kv_heads(), kv.head_dim);
  expect_multiple(kOp, "page_rows", kv.page_rows, op.bounds.block);
  expect_at_least(kOp, "bounds.min.dim(1)", op.bounds.min.dim(1) * op.bounds.block, kv.rows_bound);
}

}  // namespace ei
