#include "ei/ops/kv.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const char* op, const KvLayer& kv) {
  require(kv.dtype == DType::kBF16 || kv.dtype == DType::kF32,
          "{}: the cache is of {}, expected bf16 or f32", op, dtype_name(kv.dtype));
  expect_at_least(op, "head_dim", kv.head_dim, 1);
  expect_at_least(op, "page_rows", kv.page_rows, 1);
  expect_at_least(op, "n_kv_heads", kv.n_kv_heads(), 1);
  expect_dim(op, "pages.dim(0)", kv.pages.dim(0), kv.n_kv_heads());
  require(kv.rows_bound >= 0 && kv.rows_bound <= kv.max_rows(),
          "{}: rows_bound is {}, expected 0 to {} (the pages there are)", op, kv.rows_bound,
          kv.max_rows());
}

void check(const char* op, const KeyBounds& bounds, int64_t n_kv_heads, int64_t head_dim) {
  expect_at_least(op, "bounds.block", bounds.block, 1);
  expect_dim(op, "bounds.min.dim(0)", bounds.min.dim(0), n_kv_heads);
  expect_dim(op, "bounds.min.dim(2)", bounds.min.dim(2), head_dim);
  expect_dims(op, "bounds.max", bounds.max, bounds.min.dims);
}

}  // namespace ei
