#pragma once

#include "ei/ops/tensor.h"

namespace ei {

// out[i, :] = x[i, :] * rsqrt(mean(x[i, :]^2) + eps) * weight. `out` may be `x`.
// Serves the layer norms and, on rows of one head, qk-norm. Numerics: float sums; NMSE 1e-10.
struct RmsNorm {
  Act x;                        // [n, width]
  View<const float, 1> weight;  // [width]
  float eps = 1e-5f;
  Act out;  // [n, width]
};
void check(const RmsNorm& op);

}  // namespace ei
