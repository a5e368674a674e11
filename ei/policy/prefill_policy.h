#pragma once

#include <cstdint>

#include "ei/policy/budget.h"

namespace ei {

// What blocks are ranked by. Probabilities underflow to equal zeros on real models; the reference
// ranks by them all the same (METHOD.md 3, line 1).
enum class Rank : uint8_t { kScore, kProbability };

// How a prompt is read (METHOD.md section 1). The defaults are the authors' configuration with our
// repairs; reference() is the released code, dense() full attention: every segment is dense.
struct PrefillPolicy {
  int64_t segment = 512;  // tokens a selection is made for
  int64_t block = 8;      // tokens selected together; divides segment
  BudgetRule budget;
  int64_t threshold_len = 4096;  // segments starting before this token are dense
  int64_t dense_layers = 1;      // so many first layers are dense
  int64_t dense_tail = 64;       // a last segment shorter than this takes the one before along
  Rank rank = Rank::kScore;
  // Share of the layer before in what blocks are ranked by (softmax probabilities then), from layer
  // 2 on; 0: each layer for itself. CritiPrefill's layer fusion.
  float fusion = 0;
  bool scale_scores = false;  // scores times 1/sqrt(d)
  int64_t sink_blocks = 0;    // always kept, at the start
  int64_t recent_blocks = 0;  // always kept, right before the segment

  static PrefillPolicy dense() {
    PrefillPolicy policy;
    policy.threshold_len = INT64_MAX;
    return policy;
  }
  static PrefillPolicy reference() {
    PrefillPolicy policy;
    policy.budget.rigid_whole_prompt = true;
    policy.budget.max_over_heads = true;
    policy.dense_tail = 0;
    policy.rank = Rank::kProbability;
    return policy;
  }
  // CritiPrefill: one fixed budget for every head and segment, larger blocks, layer fusion.
  static PrefillPolicy criti() {
    PrefillPolicy policy;
    policy.block = 32;
    policy.budget.alpha = 0;
    policy.rank = Rank::kProbability;
    policy.fusion = 0.25f;
    return policy;
  }
  bool operator==(const PrefillPolicy&) const = default;
  bool is_dense() const { return threshold_len == INT64_MAX; }
};

// Throws Error naming the first setting that is out of range or does not fit another.
void validate(const PrefillPolicy& policy);

}  // namespace ei
