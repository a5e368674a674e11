#include <gtest/gtest.h>

#include "tests/support/mixed_load.h"

namespace ei {
namespace {

struct NamedDecode {
  const char* name;
  DecodePolicy policy;
};

// All ways of keeping a cache, with budgets that these prompts exceed.
std::vector<NamedDecode> all_decode_policies() {
  std::vector<NamedDecode> all = {{"latent", {}},
                                  {"snapkv", DecodePolicy::snapkv()},
                                  {"adakv", DecodePolicy::adakv()},
                                  {"latent-adakv", DecodePolicy::latent_adakv()},
                                  {"pyramidkv", DecodePolicy::pyramidkv()},
                                  {"streaming", DecodePolicy::streaming()},
                                  {"expected", DecodePolicy::expected()},
                                  {"kvzip", DecodePolicy::kvzip()},
                                  {"reference", DecodePolicy::reference()}};
  for (NamedDecode& named : all) {
    named.policy.budget = 16;
    named.policy.window = 4;
    if (named.policy.regrow > 0) named.policy.regrow = 4;
    if (named.policy.gap > 0) named.policy.gap = 3;
  }
  NamedDecode automatic = all[0];
  automatic.name = "automatic gap";
  automatic.policy.gap = kAutoGap;
  all.push_back(automatic);
  all.push_back({"full", DecodePolicy::full()});
  return all;
}

// Every pair of policies is written in one batch, and every answer is the one it would be alone.
TEST(MixedPoliciesTest, EveryPairAnswersAsEachAlone) {
  test::SmallEngine small;
  const std::vector<NamedDecode> policies = all_decode_policies();
  std::vector<Request> requests[2];
  std::vector<Generation> alone[2];
  for (const int i : {0, 1})
    for (const NamedDecode& named : policies) {
      requests[i].push_back(test::SmallEngine::request(37 + 9 * i, i));
      requests[i].back().decode = named.policy;
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
