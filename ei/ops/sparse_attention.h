#pragma once

#include "ei/ops/kv.h"
#include "ei/ops/select_blocks.h"
#include "ei/ops/tensor.h"

namespace ei {

// Prefill attention of a chunk (METHOD.md 1.6): every query attends to the selected past blocks of
// its segment and, causally, to its own segment:
//   out[i,h] = sum_j softmax_j(scale q_i . k_j) v_j  over the rows j of KV head h / G so selected.
// Dense attention is the same op with kAllBlocks everywhere. The chunk's own keys are in the cache.
// Numerics: float sums, online softmax; NMSE 1e-8 against double on the cache's own values. A CPU's
// tile unit takes numbers rounded to bf16 (1.6e-5 for scores of some units; larger ones move by
// 2^-9 of themselves) or, with Math::kF32, sums of two such, less what both parts lack (1e-8; by
// 2^-16).
struct SparseAttention {
  Act q;              // [n, n_heads * d]; its last segment may be short
  KvLayer kv;         // row = position; n_rows = begin + n
  int64_t begin = 0;  // position of row 0: anywhere when all segments are dense, else a multiple of
                      // segment; segments are cut at absolute multiples of `segment`
  int64_t segment = 0;
  int64_t block = 0;
  Selection selection;  // over the chunk's segments
  float scale = 1;      // 1 / sqrt(d)
  Act out;              // [n, n_heads * d]
};
void check(const SparseAttention& op);

}  // namespace ei
