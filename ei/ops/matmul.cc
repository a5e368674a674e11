#include "ei/ops/matmul.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const MatMul& op) {
  for (const MatMul::Part& part : op.parts) {
    if (part.weight.data == nullptr) continue;
    expect_dim("MatMul", "weight.cols", part.weight.cols, op.x.cols);
    expect_multiple("MatMul", "weight.cols", part.weight.cols,
                    block_of(part.weight.format).weights);
    expect_shape("MatMul", "out", part.out, op.x.rows, part.weight.rows);
    if (part.bias.data != nullptr) expect_dims("MatMul", "bias", part.bias, {part.weight.rows});
    require(op.x.rows == 0 || part.out.data != op.x.data, "MatMul: out is x");
  }
}

}  // namespace ei
