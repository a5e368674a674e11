#pragma once

#include "ei/policy/prefill_policy.h"

namespace ei {

// A prompt can go on from what was read before under such a policy at multiples of so many tokens.
inline int64_t unit_of(const PrefillPolicy& policy) {
  return policy.is_dense() ? policy.block : policy.segment;
}

// Calls f(name, value) for every setting, in a fixed order: one that is added and not named here
// does not compile.
template <class F>
void for_each_setting(const PrefillPolicy& policy, F&& f) {
  const auto& [estimate, segment, block, budget, mass, by_entropy, share, stride, threshold_len,
               dense_layers, dense_tail, rank, fusion, scale_scores, sink, local] = policy;
  const auto& [base, e_t, delta_t, alpha, max_factor, rigid_whole_prompt, max_over_heads] = budget;
  f("estimate", estimate);
  f("segment", segment);
  f("block", block);
  f("mass", mass);
  f("by_entropy", by_entropy);
  f("share", share);
  f("stride", stride);
  f("threshold_len", threshold_len);
  f("dense_layers", dense_layers);
  f("dense_tail", dense_tail);
  f("rank", rank);
  f("fusion", fusion);
  f("scale_scores", scale_scores);
  f("sink", sink);
  f("local", local);
  f("budget.base", base);
  f("budget.e_t", e_t);
  f("budget.delta_t", delta_t);
  f("budget.alpha", alpha);
  f("budget.max_factor", max_factor);
  f("budget.rigid_whole_prompt", rigid_whole_prompt);
  f("budget.max_over_heads", max_over_heads);
}

}  // namespace ei
