#pragma once

#include "ei/ops/tensor.h"

namespace ei {

// out = silu(gate) * up, silu(t) = t / (1 + e^-t). `out` may be `gate`. Numerics: NMSE 1e-10.
struct SwiGlu {
  Act gate;  // [n, intermediate]
  Act up;    // [n, intermediate]
  Act out;   // [n, intermediate]
};
void check(const SwiGlu& op);

}  // namespace ei
