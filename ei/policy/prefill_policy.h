#pragma once

#include <cstdint>

#include "ei/policy/budget.h"

namespace ei {

// What says how much a segment of queries wants a block of keys before it.
enum class Estimate : uint8_t {
  kBounds,         // the queries' midpoint against bounds of the block's keys (METHOD.md 1)
  kSketch,         // half of the queries against every key, in half of the dimensions (METHOD.md 6)
  kAntidiagonals,  // sums along antidiagonals of queries and keys (XAttention)
  kMeanKeys,       // every query against the mean of the block's keys (FlashPrefill)
};

// What blocks are ranked by. Probabilities underflow to equal zeros on real models; the reference
// ranks by them all the same (METHOD.md 3, line 1).
enum class Rank : uint8_t { kScore, kProbability };

// How a prompt is read (METHOD.md sections 1, 4 and 6). Bounds give scores, of which a budget in
// tokens takes the highest; the other estimates give probabilities, of which the likeliest are
// taken until they hold enough. The defaults are the paper's configuration with our repairs;
// reference() is its released code, dense() full attention: every segment is dense.
struct PrefillPolicy {
  Estimate estimate = Estimate::kBounds;
  int64_t segment = 512;  // tokens a selection is made for
  int64_t block = 8;      // tokens selected together; divides segment
  BudgetRule budget;      // kBounds: how many blocks
  // The other estimates: the likeliest blocks, until all that is attended to, the segment included,
  // holds this much of the estimated attention; 1: everything.
  float mass = 0.86f;
  // What is missing counts less the more blocks it lies on (SelectMass): a head that looks nearly
  // everywhere needs a sample of it only.
  bool by_entropy = false;
  // If not 0, instead of mass: every block with at least this much of the likeliest's.
  float share = 0;
  int64_t stride = 8;            // kAntidiagonals: queries, and keys, of a sum; divides block
  int64_t threshold_len = 4096;  // segments starting before this token are dense
  int64_t dense_layers = 1;      // so many first layers are dense
  int64_t dense_tail = 64;       // the last segment is dense, and those before it that hold any of
                                 // the last so many tokens
  Rank rank = Rank::kScore;
  // Share of the layer before in what blocks are ranked by (softmax probabilities then), from layer
  // 2 on; 0: each layer for itself. CritiPrefill's layer fusion.
  float fusion = 0;
  bool scale_scores = false;  // kBounds: scores times 1/sqrt(d)
  int64_t sink = 0;           // tokens whose blocks are always kept, at the start
  int64_t local = 0;          // tokens whose blocks are always kept, right before the segment

  // Ours.
  static PrefillPolicy sketch() {
    PrefillPolicy policy;
    policy.estimate = Estimate::kSketch;
    policy.by_entropy = true;
    policy.segment = 32;
    policy.block = 16;
    policy.threshold_len = 1024;
    policy.dense_layers = 0;
    policy.dense_tail = 512;
    policy.sink = 16;
    policy.local = 128;
    return policy;
  }
  static PrefillPolicy xattention() {
    PrefillPolicy policy;
    policy.estimate = Estimate::kAntidiagonals;
    policy.segment = policy.block = 128;
    policy.mass = 0.9f;
    policy.threshold_len = 0;
    policy.dense_layers = 0;
    policy.dense_tail = 0;
    policy.sink = 128;
    return policy;
  }
  // Version 2, without its correction by means.
  static PrefillPolicy flashprefill() {
    PrefillPolicy policy;
    policy.estimate = Estimate::kMeanKeys;
    policy.segment = policy.block = 128;
    policy.share = 0.1f;
    policy.threshold_len = 0;
    policy.dense_layers = 0;
    policy.dense_tail = 1024;
    policy.sink = 256;
    policy.local = 512;
    return policy;
  }
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
