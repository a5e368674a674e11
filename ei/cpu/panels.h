#pragma once

#include <algorithm>

#include "ei/ops/matmul.h"

namespace ei::cpu {

// The outputs of all parts of a product, in one row of panels of `step` each.
struct Panels {
  const MatMul& op;
  int64_t step;

  struct Panel {
    const MatMul::Part& part;
    int64_t begin, end;  // outputs
  };
  static int64_t outputs(const MatMul::Part& part) {
    return part.weight.data == nullptr ? 0 : part.weight.rows;
  }
  int64_t size() const {
    int64_t n = 0;
    for (const MatMul::Part& part : op.parts) n += (outputs(part) + step - 1) / step;
    return n;
  }
  Panel operator[](int64_t i) const {
    size_t p = 0;
    for (int64_t n; i >= (n = (outputs(op.parts[p]) + step - 1) / step); ++p) i -= n;
    return {op.parts[p], i * step, std::min((i + 1) * step, outputs(op.parts[p]))};
  }
};

}  // namespace ei::cpu
