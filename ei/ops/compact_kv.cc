#include "ei/ops/compact_kv.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const CompactKv& op) {
  constexpr const char* kOp = "CompactKv";
  check(kOp, op.from);
  check(kOp, op.to);
  expect_dim(kOp, "to.head_dim", op.to.layout.head_dim, op.from.layout.head_dim);
  require(op.to.layout.dtype == op.from.layout.dtype, "CompactKv: to is of {}, expected {}",
          dtype_name(op.to.layout.dtype), dtype_name(op.from.layout.dtype));
  expect_multiple(kOp, "to.n_kv_heads", op.to.n_kv_heads(), op.from.n_kv_heads());
  expect_dims(kOp, "keep.count", op.keep.count, {op.to.n_kv_heads()});
  expect_dim(kOp, "keep.rows.dim(0)", op.keep.rows.dim(0), op.to.n_kv_heads());
}

}  // namespace ei
