#include "ei/ops/sample.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SampleTest);

std::vector<SamplingParams> interesting_params() {
  std::vector<SamplingParams> all;
  const auto add = [&](float temperature, int32_t top_k, float top_p, float min_p, float penalty) {
    all.push_back({.temperature = temperature,
                   .top_k = top_k,
                   .top_p = top_p,
                   .min_p = min_p,
                   .repetition_penalty = penalty,
                   .seed = 11});
  };
  add(0, 0, 1, 0, 1);
  add(0, 3, 0.5f, 0.1f, 1.5f);
  add(1, 0, 1, 0, 1);
  add(0.7f, 5, 1, 0, 1);
  add(1.5f, 0, 0.8f, 0, 1);
  add(1, 0, 1, 0.2f, 1.3f);
  add(1, 1, 1, 0, 1);
  add(2, 40, 0.9f, 0.05f, 1.1f);
  add(1, 1000000, 0, 0, 1);  // top_p 0 still leaves one token
  return all;
}

// The token at which the cumulated distribution passes the random number, or a neighbour when it
// passes within rounding of it.
TEST_P(SampleTest, MatchesReference) {
  for (const int64_t vocab : {1, 7, 333, 5000})
    for (const SamplingParams& params : interesting_params()) {
      const int64_t n_tokens = std::max<int64_t>(1, vocab - 3);
      Array<int32_t, 1> history({6});
      for (int64_t i = 0; i < 6; ++i) history[i] = int32_t(i * i % n_tokens);  // some twice
      const auto seen = upload<int32_t>(history);
      for (const uint64_t step : {0, 1, 2, 3, 40}) {
        const DeviceAct logits = act(normal<2>({1, vocab}, 100 + step, 2), 1);
        std::vector<double> eligible = logits.values().v;
        eligible.resize(size_t(n_tokens));
        const auto p = ref::distribution(eligible, params, history.v);
        const Sample::Row row = {.params = params, .step = step, .history = seen.view()};
        const auto token = poisoned_array<int32_t, 1>({1});
        backend().run(Sample{
            .logits = logits, .rows = {&row, 1}, .n_tokens = n_tokens, .token = token.view()});
        const int32_t got = download(token)[0];
        ASSERT_GE(got, 0);
        ASSERT_LT(got, n_tokens);
        EXPECT_GT(p[size_t(got)], 0);
        double below = 0;
        for (int32_t id = 0; id < got; ++id) below += p[size_t(id)];
        const double u = params.temperature == 0 ? below : uniform(params.seed, step);
        EXPECT_LE(below, u + 1e-5) << "token " << got << " temperature " << params.temperature;
        EXPECT_GE(below + p[size_t(got)], u - 1e-5) << "token " << got;
      }
    }
}

TEST_P(SampleTest, RowsAreIndependentAndIdsBeyondTheVocabularyNeverPicked) {
  Matrix values({3, 50}, 0.0);
  values[0][49] = values[2][49] = 100;  // padding of the table
  values[0][7] = values[0][8] = 3;      // a tie
  values[2][31] = 9;
  const DeviceAct logits = act(values);
  const std::vector<Sample::Row> rows = {
      {.params = {}, .step = 0, .history = {}},
      {.params = {.temperature = 1, .seed = 5}, .step = 2, .history = {}},
      {.params = {}, .step = 0, .history = {}}};
  const auto token = poisoned_array<int32_t, 1>({3});
  backend().run(Sample{.logits = logits, .rows = rows, .n_tokens = 40, .token = token.view()});
  const auto got = download(token);
  EXPECT_EQ(got[0], 7);
  EXPECT_EQ(got[1], int32_t(uniform(5, 2) * 40));
  EXPECT_EQ(got[2], 31);
}

TEST_P(SampleTest, RejectsMoreTokensThanLogits) {
  const Sample::Row row;
  const auto token = poisoned_array<int32_t, 1>({1});
  EXPECT_THROW(
      backend().run(Sample{
          .logits = poisoned(1, 8), .rows = {&row, 1}, .n_tokens = 9, .token = token.view()}),
      Error);
}

}  // namespace
}  // namespace ei::test
