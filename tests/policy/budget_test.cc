#include "ei/policy/budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace ei {
namespace {

// The recurrence of METHOD.md 1.4, written over whole arrays in double: for a head that turns
// dynamic at `first_dynamic` its budgets before are base, and so is what it goes on from.
std::vector<double> oracle(const std::vector<double>& entropy, const BudgetRule& rule) {
  std::vector<double> budget(entropy.size(), rule.base);
  size_t first_dynamic = entropy.size();
  for (size_t s = 1; s < entropy.size(); ++s)
    if (entropy[s] >= double(rule.e_t)) first_dynamic = std::min(first_dynamic, s);
  for (size_t s = first_dynamic; s < entropy.size(); ++s) {
    double rho = rule.delta_t;
    if (s > 1)
      rho = std::clamp((entropy[s] - entropy[s - 1]) / (entropy[s - 1] + 1e-9), 0.0,
                       1 + double(rule.delta_t));
    budget[s] = std::clamp(
        budget[s - 1] + double(rule.alpha) * double(rule.base) * (rho - double(rule.delta_t)),
        double(rule.base), double(rule.max_factor) * double(rule.base));
  }
  return budget;
}

std::vector<float> run(const std::vector<double>& entropy, const BudgetRule& rule,
                       bool rigid_hint = false) {
  BudgetRecurrence recurrence(rule);
  std::vector<float> budget = {rule.base};
  for (size_t s = 1; s < entropy.size(); ++s)
    budget.push_back(recurrence.step(int64_t(s), float(entropy[s]), rigid_hint));
  return budget;
}

TEST(BudgetTest, FollowsTheOracle) {
  // Growth, a fall, a rigid start, jumps beyond both clamps.
  const std::vector<std::vector<double>> cases = {{0, 1, 2, 3, 4, 5, 3, 1, 6, 6, 6},
                                                  {0, 0, 0, 0, 2, 4, 8, 16, 32, 1, 1},
                                                  {0, 1e-7, 1e-8, 1e-6, 1e-7, 0, 0, 0},
                                                  {0, 1e-30, 1e-7, 0.5, 0.6, 0.9, 1.5},
                                                  {0, 0.1, 0.3, 0.9, 2.7, 8.1, 24.3, 24.3}};
  for (const auto& entropy : cases) {
    const BudgetRule rule;
    const auto want = oracle(entropy, rule);
    const auto got = run(entropy, rule);
    for (size_t s = 0; s < want.size(); ++s)
      EXPECT_NEAR(got[s], want[s], 0.01) << "segment " << s;  // float steps of a budget of 6144
  }
}

TEST(BudgetTest, StaysBetweenBaseAndItsMultiple) {
  BudgetRule rule;
  rule.base = 100;
  double value = 1;
  std::vector<double> entropy = {0};
  for (int i = 0; i < 60; ++i) entropy.push_back(value *= i < 30 ? 1.9 : 0.5);
  const auto budget = run(entropy, rule);
  EXPECT_FLOAT_EQ(*std::max_element(budget.begin(), budget.end()), 300);
  EXPECT_FLOAT_EQ(budget.back(), 100);
}

TEST(BudgetTest, RigidWhileEveryEntropySoFarIsBelow) {
  // Entropy that grows tenfold a segment would raise the budget, were the head dynamic.
  const std::vector<double> entropy = {0, 1e-9, 1e-8, 1e-7, 1e-6, 9e-6, 2e-5, 2e-4};
  const auto budget = run(entropy, {});
  for (size_t s = 0; s < 6; ++s) EXPECT_EQ(budget[s], 2048) << s;
  EXPECT_GT(budget[6], 2048);
  EXPECT_GT(budget[7], budget[6]);
}

TEST(BudgetTest, WholePromptRuleTrustsTheHint) {
  BudgetRule rule;
  rule.rigid_whole_prompt = true;
  const std::vector<double> entropy = {0, 1e-8, 1e-7, 1e-6};
  EXPECT_EQ(run(entropy, rule, true)[3], 2048);
  EXPECT_GT(run(entropy, rule, false)[3], 2048);
}

TEST(BudgetTest, AlphaZeroFixesTheBudget) {
  BudgetRule rule;
  rule.alpha = 0;
  for (const float budget : run({0, 1, 5, 25, 2, 30}, rule)) EXPECT_EQ(budget, rule.base);
}

}  // namespace
}  // namespace ei
