#pragma once

#include "ei/ops/tensor.h"

namespace ei {

// What ranks that share a model (Backend::ranks()) do together: all of them run it, with the same
// shapes. On one rank AllReduce does nothing.

// x = its sum over the ranks. Numerics: sums in the type of the activations, in any order. On a GPU
// sums of many rows run beside the products and norms of others that come next.
struct AllReduce {
  Act x;  // [n, m]
};

// The parts of all ranks side by side, in their order: columns [r m, (r + 1) m) of `out` are rank
// r's. To the bit.
struct AllGather {
  Act part;  // [n, m] of 4-byte floats on every backend, as logits are
  Act out;   // [n, n_ranks * m]; must not overlap `part`
};
void check(const AllGather& op, int n_ranks);

}  // namespace ei
