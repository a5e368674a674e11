#include "apps/eval/effort.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ei/policy/named.h"
#include "tests/support/files.h"

namespace ei::eval {
namespace {

// Tries until there is nothing left to try, of a density that depends on the place.
std::vector<Try> search(const Effort& effort, double wanted, double (*density)(double)) {
  std::vector<Try> tries;
  while (const auto at = next_try(tries, wanted, effort)) {
    tries.push_back({*at, density(effort.value(*at))});
    if (tries.size() > 20) break;
  }
  return tries;
}

TEST(EffortTest, FindsADensityInFewTries) {
  const Effort effort{PrefillPolicy()};
  EXPECT_EQ(effort.setting(), "base_budget");
  EXPECT_NEAR(effort.value(effort.start()), 2048, 1e-6);
  EXPECT_NEAR(double(effort.policy(std::log(512)).budget.base), 512, 1e-3);
  for (const double wanted : {0.05, 0.2, 0.31, 0.38, 0.9}) {
    const auto tries = search(effort, wanted, [](double base) { return base / (base + 1500); });
    EXPECT_NEAR(tries[nearest(tries, wanted)].value, wanted, kNear * wanted);
    EXPECT_LE(tries.size(), 8u) << wanted;
  }
}

TEST(EffortTest, EveryPolicysOwnSetting) {
  // Where the policy stands, its one setting is what it was; further up it reads more.
  for (const auto& [name, policy] : prefill_policies()) {
    if (policy.is_dense()) continue;
    const Effort effort(policy);
    const PrefillPolicy same = effort.policy(effort.start()),
                        more = effort.policy(effort.start() + 1);
    EXPECT_NEAR(same.mass, policy.mass, 1e-6) << name;
    EXPECT_NEAR(same.share, policy.share, 1e-6) << name;
    EXPECT_NEAR(same.budget.base, policy.budget.base, 1e-3) << name;
    EXPECT_GE(effort.start(), effort.low());
    EXPECT_LE(effort.start() + 1, effort.high());
    EXPECT_EQ((more.mass > policy.mass) + (more.share < policy.share) +
                  (more.budget.base > policy.budget.base),
              1)
        << name;
    EXPECT_EQ(effort.setting() == "mass", more.mass != same.mass) << name;
    EXPECT_EQ(effort.setting() == "share", more.share != same.share) << name;
    validate(effort.policy(effort.low()));
    validate(effort.policy(effort.high()));
  }
}

TEST(EffortTest, EndsWhereADensityCannotBeHad) {
  const Effort effort{PrefillPolicy()};
  // Below what is always kept, above everything, and across a step.
  for (const auto density : {+[](double base) { return 0.3 + base / 0x1p31; },
                             +[](double base) { return 0.1 + 0.1 * base / 0x1p31; },
                             +[](double base) { return base < 900 ? 0.1 : 0.4; }}) {
    const auto tries = search(effort, 0.25, density);
    EXPECT_LE(tries.size(), 20u);
    for (const Try& t : tries) {
      EXPECT_GE(t.at, effort.low());
      EXPECT_LE(t.at, effort.high());
    }
  }
}

TEST(EffortTest, DenseHasNone) {
  EXPECT_NE(test::error_of([] { Effort effort{PrefillPolicy::dense()}; }), "");
}

}  // namespace
}  // namespace ei::eval
