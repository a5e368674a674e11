#pragma once

#include <span>

#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"

namespace ei {

// Attention of one new query of each of several sequences to all rows its cache holds, whatever
// their number for each head: out[i,h] = sum_j softmax_j(scale q_i . k_j) v_j.
// The query's own key is already in the cache. Numerics: float sums; NMSE 1e-8.
struct DecodeAttention {
  Act q;                        // [n, n_heads * d]
  std::span<const KvLayer> kv;  // [n]
  float scale = 1;              // 1 / sqrt(d)
  Act out;                      // [n, n_heads * d]
};
void check(const DecodeAttention& op);

}  // namespace ei
