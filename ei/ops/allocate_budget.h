#pragma once

#include "ei/base/view.h"
#include "ei/policy/budget.h"

namespace ei {

// Marks a (KV head, segment) that attends to every past block: dense attention.
inline constexpr int32_t kAllBlocks = -1;

// How many past blocks every KV head may attend to in each segment of a chunk (METHOD.md 1.4): the
// recurrence of policy/budget.h over the head's entropies from the start of the prompt, in tokens;
// blocks = min(budget / B, sS / B). Segments before dense_before or from dense_from on get
// kAllBlocks. It starts from segment 0 every time: entropies are all the state a chunk inherits.
// Rules that look at the whole prompt take its segments to be those given here: the chunk is the
// prompt. Those that take the largest budget of all heads take it of all ranks' (Backend::ranks()).
struct AllocateBudget {
  View<const float, 3> entropy;  // [>= first_segment + n_segments, n_layers, n_kv_heads]: from
                                 // segment 0 on
  int64_t layer = 0;             // of entropy
  int64_t first_segment = 0;     // of the chunk
  int64_t segment = 0;           // tokens
  int64_t block = 0;             // tokens
  BudgetRule rule;
  int64_t dense_before = 0;
  int64_t dense_from = INT64_MAX;
  View<float, 2> tokens;    // out: [n_kv_heads, n_segments] the budget before it is cut to blocks
  View<int32_t, 2> blocks;  // out: [n_kv_heads, n_segments]
};
void check(const AllocateBudget& op);

}  // namespace ei
