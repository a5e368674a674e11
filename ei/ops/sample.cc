#include "ei/ops/sample.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const Sample& op) {
  constexpr const char* kOp = "Sample";
  expect_dim(kOp, "the number of rows", std::ssize(op.rows), op.logits.rows);
  expect_dims(kOp, "token", op.token, {op.logits.rows});
  require(op.n_tokens > 0 && op.n_tokens <= op.logits.cols,
          "Sample: n_tokens is {}, expected 1 to {}", op.n_tokens, op.logits.cols);
}

}  // namespace ei
