#include "ei/ops/kv.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const char* op, const KvLayer& kv) {
  const PageLayout& layout = kv.layout;
  require(layout.dtype != DType::kF16, "{}: the cache is of f16, expected bf16, f32, q8_0 or fp8",
          op);
  expect_at_least(op, "head_dim", layout.head_dim, 1);
  require(layout.dtype != DType::kFP8 || PageLayout::has_fp8(layout.head_dim),
          "{}: heads of {} numbers in a cache of fp8, expected 16, 32, 64, 128 or 256", op,
          layout.head_dim);
  expect_at_least(op, "the rows of a page", layout.rows, 1);
  expect_at_least(op, "block", layout.block, 0);
  if (layout.block > 0) expect_multiple(op, "the rows of a page", layout.rows, layout.block);
  expect_at_least(op, "n_kv_heads", kv.n_kv_heads(), 1);
  expect_dim(op, "pages.dim(0)", kv.pages.dim(0), kv.n_kv_heads());
  require(kv.rows_bound >= 0 && kv.rows_bound <= kv.max_rows(),
          "{}: rows_bound is {}, expected 0 to {} (the pages there are)", op, kv.rows_bound,
          kv.max_rows());
}

}  // namespace ei
