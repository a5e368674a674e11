#include <gtest/gtest.h>

#include "ei/policy/named.h"
#include "tests/support/mixed_load.h"

namespace ei {
namespace {

// All ways of keeping a cache, with budgets that these prompts exceed.
std::vector<Named<DecodePolicy>> all_decode_policies() {
  const auto named = decode_policies();
  std::vector<Named<DecodePolicy>> all(named.begin(), named.end());
  all.push_back({"reference", DecodePolicy::reference()});
  all.push_back({"automatic gap", {}});
  all.back().policy.gap = kAutoGap;
  for (auto& [name, policy] : all) {
    if (policy.is_full()) continue;
    policy.budget = 16;
    policy.window = 4;
    if (policy.regrow > 0) policy.regrow = 4;
    if (policy.gap > 0) policy.gap = 3;
  }
  return all;
}

// Every pair of policies is written in one batch, and every answer is the one it would be alone.
TEST(MixedPoliciesTest, EveryPairAnswersAsEachAlone) {
  test::SmallEngine small;
  const std::vector<Named<DecodePolicy>> policies = all_decode_policies();
  std::vector<Request> requests[2];
  std::vector<Generation> alone[2];
  for (const int i : {0, 1})
    for (const auto& [name, policy] : policies) {
      requests[i].push_back(test::SmallEngine::request(37 + 9 * i, i));
      requests[i].back().decode = policy;
      requests[i].back().max_tokens = 12;
      alone[i].push_back(Session(small.engine).generate(requests[i].back()));
    }
  Scheduler scheduler(small.engine, test::mixed_options(0));
  for (size_t a = 0; a < policies.size(); ++a) {
    for (size_t b = 0; b < policies.size(); ++b) {
      SCOPED_TRACE(testing::Message() << policies[a].name << " beside " << policies[b].name);
      const std::vector<Outcome> got =
          test::run_together(scheduler, {requests[0][a], requests[1][b]});
      for (const int i : {0, 1}) {
        const Generation& want = alone[i][i == 0 ? a : b];
        const Outcome& outcome = got[static_cast<size_t>(i)];
        ASSERT_FALSE(outcome.error) << *outcome.error;
        EXPECT_EQ(outcome.generation.tokens, want.tokens);
        EXPECT_EQ(outcome.generation.kv.compressed, want.kv.compressed);
        EXPECT_EQ(outcome.generation.kv.entry_bytes, want.kv.entry_bytes);
      }
    }
  }
}

}  // namespace
}  // namespace ei
