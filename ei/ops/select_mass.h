#pragma once

#include "ei/ops/select_blocks.h"

namespace ei {

// Chooses the past blocks of every (KV head, segment) by shares of attention as EstimateMass writes
// them (METHOD.md 6). The blocks that hold any of the first `sink` tokens or of the `local` tokens
// before the segment are always kept. Beside them
//
//   share > 0   every one with at least `share` of the likeliest past block's
//   else        the likeliest, ties to the lower block, as few as are enough; all of them if total
//               is 1. With h the sum of the shares that are kept, the segment's own among them,
//               that is
//     h >= total                                                  or, with by_entropy,
//     16 (sum over others p^2 + ((1-h)/h)^2 sum over kept p^2) <= (1-total)^2
//
// where the segment's own share counts as equal ones of its blocks. By entropy: were the blocks'
// mean values independent, leaving some out would move a head's output by the root of what is in
// brackets, in units of how far values lie apart. A sum of p^2 is the exponential of a negative
// collision entropy; with 16 equal blocks kept and many left both rules say the same.
//
// Segments before dense_before or from dense_from on get kAllBlocks. Numerics: h and the sums of
// squares are right to 1e-5 of themselves; where that decides, a block more or less is kept.
// Nothing depends on threads or on other segments.
struct SelectMass {
  View<const float, 3> mass;  // [n_kv_heads, n_segments, >= past blocks]
  View<const float, 2> own;   // [n_kv_heads, n_segments]
  int64_t first_segment = 0;
  int64_t segment = 0;
  int64_t block = 0;
  float total = 1;
  bool by_entropy = false;
  float share = 0;
  int64_t sink = 0;   // tokens
  int64_t local = 0;  // tokens
  int64_t dense_before = 0;
  int64_t dense_from = INT64_MAX;
  Selection out;  // capacity >= past blocks of the last segment that is not dense
};
void check(const SelectMass& op);

}  // namespace ei
