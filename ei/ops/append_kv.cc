#include "ei/ops/append_kv.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const AppendKv& op) {
  constexpr const char* kOp = "AppendKv";
  expect_shape(kOp, "v", op.v, op.k.rows, op.k.cols);
  expect_multiple(kOp, "n", op.k.rows, std::ssize(op.kv));
  for (const KvLayer& kv : op.kv) {
    check(kOp, kv);
    expect_multiple(kOp, "k.cols", op.k.cols, kv.layout.head_dim);
    expect_multiple(kOp, "n_kv_heads", kv.n_kv_heads(), op.k.cols / kv.layout.head_dim);
  }
}

}  // namespace ei
