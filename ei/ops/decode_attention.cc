#include "ei/ops/decode_attention.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const DecodeAttention& op) {
  constexpr const char* kOp = "DecodeAttention";
  expect_shape(kOp, "out", op.out, op.q.rows, op.q.cols);
  expect_dim(kOp, "the number of caches", std::ssize(op.kv), op.q.rows);
  for (const KvLayer& kv : op.kv) {
    check(kOp, kv);
    expect_multiple(kOp, "q.cols", op.q.cols, kv.n_kv_heads() * kv.layout.head_dim);
  }
}

}  // namespace ei
