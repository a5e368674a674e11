#include "ei/ops/allocate_budget.h"

#include <random>

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(AllocateBudgetTest);

// Heads that stay rigid, that wander, and that jump after a rigid start.
Matrix random_entropy(int64_t heads, int64_t segments, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0, 4);
  Matrix entropy({heads, segments});
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t s = 1; s < segments; ++s) {
      const bool rigid = h % 3 == 0 || (h % 3 == 1 && s < segments / 2);
      entropy[h][s] = static_cast<float>(rigid ? 1e-7 : uniform(random));
    }
  return entropy;
}

TEST_P(AllocateBudgetTest, MatchesReference) {
  struct Case {
    int64_t heads, first, n, dense_before, dense_from;
  };
  for (const Case& c : {Case{1, 0, 1, 0, INT64_MAX},
                        {1, 0, 0, 0, INT64_MAX},
                        {3, 0, 40, 8, 38},
                        {7, 13, 11, 8, 20},
                        {8, 30, 33, 0, INT64_MAX},
                        {2, 1000, 1100, 1020, 2050}})  // more than a tile of segments
    for (const int variant : {0, 1, 2, 3, 4}) {
      SCOPED_TRACE(testing::Message() << c.heads << " heads, segments from " << c.first << ": "
                                      << c.n << ", variant " << variant);
      BudgetRule rule;
      rule.base = 300;
      rule.rigid_whole_prompt = variant == 1 || variant == 3;
      rule.max_over_heads = variant == 2 || variant == 3;
      if (variant == 4) rule.alpha = 0;
      const Matrix entropy = random_entropy(c.heads, c.first + c.n + 2, 1);
      const Matrix want = ref::allocate_budget(entropy, c.first, c.n, rule);
      Array<double, 3> stored({entropy.dim(1), 3, c.heads}, NAN);  // of the second layer of three
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t i = 0; i < entropy.dim(1); ++i) stored[i][1][h] = entropy[h][i];
      const auto e = upload<float>(stored);
      const auto tokens = poisoned_array<float, 2>({c.heads, c.n});
      const auto blocks = poisoned_array<int32_t, 2>({c.heads, c.n});
      backend().run(AllocateBudget{.entropy = e.view(),
                                   .layer = 1,
                                   .first_segment = c.first,
                                   .segment = 64,
                                   .block = 8,
                                   .rule = rule,
                                   .dense_before = c.dense_before,
                                   .dense_from = c.dense_from,
                                   .tokens = tokens.view(),
                                   .blocks = blocks.view()});
      const auto got_tokens = download(tokens);
      const auto got = download(blocks);
      EXPECT_LE(nmse(got_tokens.v, want.v), 1e-10);
      // Of the backend's own tokens: rounding may have moved them past a whole block.
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t i = 0; i < c.n; ++i) {
          const int64_t s = c.first + i;
          EXPECT_EQ(got[h][i], s < c.dense_before || s >= c.dense_from
                                   ? kAllBlocks
                                   : ref::blocks_of(got_tokens[h][i], s, 64, 8))
              << "head " << h << " segment " << s;
        }
    }
}

TEST_P(AllocateBudgetTest, RejectsMissingEntropies) {
  const auto e = upload<float>(Array<double, 3>({4, 1, 1}, 0.0));
  const auto tokens = poisoned_array<float, 2>({1, 3});
  const auto blocks = poisoned_array<int32_t, 2>({1, 3});
  EXPECT_THROW(backend().run(AllocateBudget{.entropy = e.view(),
                                            .first_segment = 2,
                                            .segment = 64,
                                            .block = 8,
                                            .rule = {},
                                            .tokens = tokens.view(),
                                            .blocks = blocks.view()}),
               Error);
}

}  // namespace
}  // namespace ei::test
