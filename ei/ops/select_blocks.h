#pragma once

#include "ei/ops/allocate_budget.h"
#include "ei/policy/prefill_policy.h"

namespace ei {

// The past blocks that each (KV head, segment) of a chunk attends to.
struct Selection {
  View<int32_t, 2> count;  // [n_kv_heads, n_segments], or kAllBlocks
  View<int32_t, 3>
      index;  // [n_kv_heads, n_segments, capacity], the first `count` ascending, distinct
};

// Picks the `blocks` highest-scoring past blocks of every (KV head, segment), ties to the lower
// block (METHOD.md 1.5). Blocks at or after the segment are never picked. With Rank::kProbability
// scores are first put through softmax in float, where small ones underflow to equal zeros (the
// reference). The first sink_blocks and the last recent_blocks of the past are always among them.
// Integers: exact wherever scores differ.
struct SelectBlocks {
  View<const float, 3> score;  // [n_kv_heads, n_segments, >= past blocks]
  View<const int32_t, 2>
      blocks;  // [n_kv_heads, n_segments] how many, <= past blocks; or kAllBlocks
  int64_t first_segment = 0;
  int64_t segment = 0;
  int64_t block = 0;
  Rank rank = Rank::kScore;
  int64_t sink_blocks = 0;
  int64_t recent_blocks = 0;
  Selection out;  // capacity >= the largest count; kAllBlocks is passed on with no indices
};
void check(const SelectBlocks& op);

}  // namespace ei
