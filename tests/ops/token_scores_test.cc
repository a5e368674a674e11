#include "ei/ops/token_scores.h"

#include <algorithm>

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(TokenScoresTest);

TEST_P(TokenScoresTest, MatchesReference) {
  for (const int64_t rows : {0, 1, 5})
    for (const int64_t vocab : {1, 2, 17, 4096, 32003})
      for (const double sigma : {1.0, 100.0}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << vocab << " sigma " << sigma);
        const DeviceAct logits = act(normal<2>({rows, vocab}, 1, sigma), 1);
        Array<int32_t, 1> targets({rows});
        for (int64_t i = 0; i < rows; ++i) targets[i] = int32_t(i * 7919 % vocab);
        const auto t = upload<int32_t>(targets);
        const auto logprob = poisoned_array<float, 1>({rows});
        const auto argmax = poisoned_array<int32_t, 1>({rows});
        backend().run(TokenScores{.logits = logits,
                                  .targets = t.view(),
                                  .logprob = logprob.view(),
                                  .argmax = argmax.view()});
        const Matrix values = logits.values();
        for (int64_t i = 0; i < rows; ++i) {
          const std::vector<double> row(values[i].begin(), values[i].end());
          const double want = ref::log_probability(row, targets[i]);
          // 1e-5 is of the sum; far down the difference of two floats rounds as well.
          EXPECT_NEAR(download(logprob)[i], want, 1e-5 + 1e-7 * std::abs(want));
          EXPECT_EQ(download(argmax)[i], std::max_element(row.begin(), row.end()) - row.begin());
        }
      }
}

TEST_P(TokenScoresTest, TiesGoToTheLowerId) {
  Matrix values({1, 100}, 1.0);
  values[0][33] = values[0][34] = values[0][99] = 2;
  const auto t = upload<int32_t>(Array<int32_t, 1>({1}, 0));
  const auto logprob = poisoned_array<float, 1>({1});
  const auto argmax = poisoned_array<int32_t, 1>({1});
  backend().run(TokenScores{.logits = act(values),
                            .targets = t.view(),
                            .logprob = logprob.view(),
                            .argmax = argmax.view()});
  EXPECT_EQ(download(argmax)[0], 33);
}

TEST_P(TokenScoresTest, RejectsMissingTargets) {
  const auto t = upload<int32_t>(Array<int32_t, 1>({1}, 0));
  const auto logprob = poisoned_array<float, 1>({2});
  const auto argmax = poisoned_array<int32_t, 1>({2});
  EXPECT_THROW(backend().run(TokenScores{.logits = poisoned(2, 8),
                                         .targets = t.view(),
                                         .logprob = logprob.view(),
                                         .argmax = argmax.view()}),
               Error);
}

}  // namespace
}  // namespace ei::test
