#include "ei/ops/token_scores.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const TokenScores& op) {
  constexpr const char* kOp = "TokenScores";
  expect_at_least(kOp, "logits.cols", op.logits.cols, 1);
  expect_dims(kOp, "targets", op.targets, {op.logits.rows});
  expect_dims(kOp, "logprob", op.logprob, {op.logits.rows});
  expect_dims(kOp, "argmax", op.argmax, {op.logits.rows});
}

}  // namespace ei
