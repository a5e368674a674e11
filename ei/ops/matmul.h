#pragma once

#include <array>

#include "ei/ops/tensor.h"

namespace ei {

// Up to three projections of the same rows, so that x is read once:
//   out_p = x weight_p^T + bias_p,  or  out_p += x weight_p^T + bias_p.
// Weights are in any format that the backend's place() gives.
// Numerics: float sums; NMSE against double on the same weights 1e-9, 1e-8 where they are
// quantized. A CPU's tile unit takes x and the weights rounded to bf16 when there are more than 8
// rows: 1.6e-5. On a CPU of Math::kF32 1e-11 in any case. Where weights are in e4m3
// (Weight::scale), their rounding is 1e-3, and more than 8 rows of x are rounded so too, each by
// its largest: 2e-3. `out` must not overlap `x`.
struct MatMul {
  struct Part {
    Weight weight;              // [m, k]; weight.data == nullptr: no such part
    View<const float, 1> bias;  // [m], or empty
    Act out;                    // [n, m]
    bool accumulate = false;    // add to what `out` holds: the residual stream
  };
  Act x;  // [n, k]
  std::array<Part, 3> parts;
};
void check(const MatMul& op);

}  // namespace ei
