#include "ei/ops/embed.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const Embed& op) {
  expect_multiple("Embed", "table.cols", op.table.cols, block_of(op.table.format).weights);
  require(op.table.order == nullptr, "Embed: the columns of the table are permuted");
  expect_shape("Embed", "out", op.out, op.tokens.dim(0), op.table.cols);
}

}  // namespace ei
