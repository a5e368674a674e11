#include "ei/ops/sample.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const Sample& op) {
  constexpr const char* kOp = "Sample";
  expect_dims(kOp, "token", op.token, {std::ssize(op.rows)});
  require(op.n_tokens > 0 && op.n_tokens <= op.logits.cols,
          "Sample: n_tokens is {}, expected 1 to {}", op.n_tokens, op.logits.cols);
  for (const Sample::Row& row : op.rows) {
    require(row.logits_row >= 0 && row.logits_row < op.logits.rows,
            "Sample: logits_row is {}, expected 0 to {}", row.logits_row, op.logits.rows - 1);
    if (row.allowed.size() > 0)
      expect_at_least(kOp, "the size of allowed", row.allowed.size(), (op.n_tokens + 31) / 32);
    if (row.history.size() > 0)
      expect_at_least(kOp, "the size of history", row.history.size(), row.n_prompt + row.step + 1);
  }
}

}  // namespace ei
