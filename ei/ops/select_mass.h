#pragma once

#include "ei/ops/select_blocks.h"

namespace ei {

// Chooses the past blocks of every (KV head, segment) by shares of attention as EstimateMass writes
// them (METHOD.md 6). The blocks that hold any of the first `sink` tokens or of the `local` tokens
// before the segment are always kept. Beside them
//
//   share = 0  the likeliest, ties to the lower block, as few as make the shares of all that is
//   kept,
//              the segment's own included, reach `total`; all of them if total is 1
//   else       every one with at least `share` of the likeliest past block's
//
// Segments before dense_before or from dense_from on get kAllBlocks. Sums are float, in the order
// in which blocks are taken: always kept ones ascending, then by likelihood.
struct SelectMass {
  View<const float, 3> mass;  // [n_kv_heads, n_segments, >= past blocks]
  View<const float, 2> own;   // [n_kv_heads, n_segments]
  int64_t first_segment = 0;
  int64_t segment = 0;
  int64_t block = 0;
  float total = 1;
  float share = 0;
  int64_t sink = 0;   // tokens
  int64_t local = 0;  // tokens
  int64_t dense_before = 0;
  int64_t dense_from = INT64_MAX;
  Selection out;  // capacity >= past blocks of the last segment that is not dense
};
void check(const SelectMass& op);

}  // namespace ei
