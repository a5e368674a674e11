#pragma once

#include <cstdint>

#include "ei/base/view.h"

namespace ei {

// How the block budget of a head follows its attention entropy (METHOD.md 1.4; paper section 3.2).
struct BudgetRule {
  float base = 2048;     // tokens
  float e_t = 1e-5f;     // nats: a head is rigid while its entropy stays below
  float delta_t = 0.4f;  // growth of entropy that leaves the budget as it is
  float alpha = 0.5f;    // step size, in units of base; 0 gives every head the fixed base budget
  float max_factor = 3;  // budgets lie in [base, max_factor * base]
  bool rigid_whole_prompt = false;  // reference: rigid only if below e_t in *all* segments
  bool max_over_heads = false;      // reference: all heads get the largest budget among them

  bool operator==(const BudgetRule&) const = default;
};

// Tokens by which the entropies of two neighbouring segments, s - 1 and s > 1, move a budget.
EI_HOST_DEVICE inline float budget_change(const BudgetRule& rule, float previous, float entropy) {
  const float rho = (entropy - previous) / (previous + 1e-9f), most = 1 + rule.delta_t;
  return rule.alpha * rule.base * ((rho < 0 ? 0 : rho > most ? most : rho) - rule.delta_t);
}

// The budget of one KV head, stepped from segment to segment. Segment 0 has no past: its entropy is
// not looked at.
//   rho_1 = delta_t;  rho_s = clamp((E_s - E_{s-1}) / (E_{s-1} + 1e-9), 0, 1 + delta_t)
//   budget_s = clamp(budget_{s-1} + alpha base (rho_s - delta_t), base, max_factor base)
class BudgetRecurrence {
 public:
  EI_HOST_DEVICE explicit BudgetRecurrence(const BudgetRule& rule)
      : rule_(rule), budget_(rule.base) {}

  // Takes the entropy of segment s = 1, 2, ... and returns that segment's budget in tokens.
  // `rigid_hint`: every entropy of the prompt is below e_t, for rules that look at the whole
  // prompt.
  EI_HOST_DEVICE float step(int64_t s, float entropy, bool rigid_hint) {
    const float change = s > 1 ? budget_change(rule_, previous_, entropy) : 0;
    previous_ = entropy;
    return step_by(change, entropy, rigid_hint);
  }
  // The same with the change known: budget_change(), or 0 for s = 1.
  EI_HOST_DEVICE float step_by(float change, float entropy, bool rigid_hint) {
    if (entropy >= rule_.e_t) rigid_ = false;
    if (rule_.rigid_whole_prompt ? rigid_hint : rigid_) return budget_ = rule_.base;
    const float next = budget_ + change;
    const float top = rule_.max_factor * rule_.base;
    return budget_ = next < rule_.base ? rule_.base : next > top ? top : next;
  }

 private:
  BudgetRule rule_;
  float budget_;
  float previous_ = 0;
  bool rigid_ = true;
};

}  // namespace ei
