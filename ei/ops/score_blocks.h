#pragma once

#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"

namespace ei {

// How much each query segment of a chunk wants each key block before it, and how spread out that is
// (METHOD.md 1.1 to 1.3; paper section 3.1). For segment s, tokens [sS, (s+1)S), and block b <
// sS/B:
//
//   q_mid[h,s]   = (max + min) / 2 over the segment's queries of head h, elementwise
//   score[k,s,b] = scale * mean over the G query heads of KV head k of
//                  max(q_mid . k_max[k,b], q_mid . k_min[k,b])
//   entropy[k,s] = -sum_b p log p of p = softmax_b(score), in nats, within [0, log n_blocks];
//                  as log Z - (sum e^t t) / Z with t = score - max, so that nothing underflows
//
// The reference averages dot products with q_max and q_min: by linearity one product with q_mid. It
// does not divide by sqrt(d) either (scale = 1): its e_t goes with that.
// score is written for b < sS/B alone. Segment 0 has no past: entropy 0, no scores. entropy has a
// row for every segment of the prompt, of which the chunk's, begin / segment onwards, are written,
// and of those what is the layer's: all that is inherited of a segment is one run. Numerics: float
// products; NMSE 1e-9 on scores; entropy within 1e-4 relative or 1e-5 absolute.
struct ScoreBlocks {
  Act q;              // [n, n_heads * d]: the chunk; its last segment may be short
  int64_t begin = 0;  // position of row 0, a multiple of segment
  int64_t segment = 0;
  float scale = 1;
  KvLayer kv;              // with key bounds, of at least the blocks before the last segment
  View<float, 3> score;    // out: [n_kv_heads, n_segments of the chunk, >= past blocks of its last]
  View<float, 3> entropy;  // out: [>= all segments up to the chunk's last, n_layers, n_kv_heads]
  int64_t layer = 0;       // of entropy
};
void check(const ScoreBlocks& op);

}  // namespace ei
