#include "ei/ops/sparse_attention.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const SparseAttention& op) {
  constexpr const char* kOp = "SparseAttention";
  check(kOp, op.kv);
  expect_shape(kOp, "out", op.out, op.q.rows, op.q.cols);
  expect_multiple(kOp, "q.cols", op.q.cols, op.kv.n_kv_heads() * op.kv.layout.head_dim);
  expect_multiple(kOp, "segment", op.segment, op.block);
  expect_multiple(kOp, "the rows of a page", op.kv.layout.rows, op.block);
  expect_at_least(kOp, "begin", op.begin, 0);
  expect_dim(kOp, "kv.rows_bound", op.kv.rows_bound, op.begin + op.q.rows);
  if (op.q.rows == 0) return;
  const int64_t n_segments =
      (op.begin + op.q.rows + op.segment - 1) / op.segment - op.begin / op.segment;
  expect_dim(kOp, "selection.count.dim(0)", op.selection.count.dim(0), op.kv.n_kv_heads());
  expect_dim(kOp, "selection.count.dim(1)", op.selection.count.dim(1), n_segments);
  if (op.selection.index.data == nullptr) return;  // all dense
  expect_multiple(kOp, "begin", op.begin, op.segment);
  expect_dim(kOp, "selection.index.dim(0)", op.selection.index.dim(0), op.kv.n_kv_heads());
  expect_dim(kOp, "selection.index.dim(1)", op.selection.index.dim(1), n_segments);
}

}  // namespace ei
