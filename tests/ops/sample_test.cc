#include "ei/ops/sample.h"

#include <cmath>

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SampleTest);

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<SamplingParams> interesting_params() {
  return {
      {},
      {.top_k = 3, .top_p = 0.5f, .min_p = 0.1f, .repetition_penalty = 1.5f},
      {.presence_penalty = 1.5f, .frequency_penalty = 0.7f},
      {.temperature = 1},
      {.temperature = 1, .top_k = -1, .presence_penalty = 2},
      {.temperature = 1, .frequency_penalty = -2},
      {.temperature = 0.7f, .top_k = 5},
      {.temperature = 1.5f, .top_p = 0.8f},
      {.temperature = 1, .min_p = 0.2f, .repetition_penalty = 1.3f},
      {.temperature = 1, .top_k = 1},
      {.temperature = 1, .min_p = 1},
      {.temperature = 2, .top_k = 40, .top_p = 0.9f, .min_p = 0.05f, .repetition_penalty = 1.1f},
      {.temperature = 0.9f,
       .top_k = 30,
       .repetition_penalty = 0.8f,
       .presence_penalty = 0.5f,
       .frequency_penalty = 0.25f},
      {.temperature = 1, .top_k = 1000000, .top_p = 0},  // still leaves one token
      {.temperature = 1, .top_p = 1e-30f},
      {.temperature = 1e-30f, .top_k = 2},
  };
}

// A row of the op, what it points to, and what the oracle is told.
struct Case {
  SamplingParams params;
  int64_t logits_row = 0, step = 0;
  std::vector<LogitBias> biases;
  std::vector<uint32_t> allowed;
  std::vector<int32_t> prompt, answer;
  DeviceArray<LogitBias, 1> device_biases;
  DeviceArray<uint32_t, 1> device_allowed;
  DeviceArray<int32_t, 1> history;

  void place(Backend& backend) {
    step = std::ssize(answer);
    device_biases = {backend, biases};
    device_allowed = {backend, allowed};
    std::vector<int32_t> all = prompt;
    all.insert(all.end(), answer.begin(), answer.end());
    all.push_back(-7777);  // for the token that is drawn
    history = {backend, all};
  }
  Sample::Row row() const {
    return {.params = params,
            .logits_row = logits_row,
            .step = step,
            .biases = device_biases.view(),
            .allowed = device_allowed.view(),
            .history = history.view(),
            .n_prompt = std::ssize(prompt)};
  }
};

// Some ids several times, some beyond the vocabulary.
Case random_case(const SamplingParams& params, int64_t n_tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto ids = [&](size_t n) {
    std::vector<int32_t> ids(n);
    const uint64_t n_different = random() % 2 == 0 ? uint64_t(n_tokens) + 2 : 5;
    for (int32_t& id : ids) id = int32_t(random() % n_different);
    return ids;
  };
  Case c;
  c.params = params;
  c.params.seed = seed;
  c.prompt = ids(random() % 20);
  c.answer = ids(random() % 50);
  if (seed % 2 == 0)
    for (const int32_t id : ids(3)) c.biases.push_back({id, float(int(random() % 9)) - 4});
  if (seed % 3 == 0) {
    for (int64_t i = 0; i < n_tokens; i += 32) c.allowed.push_back(uint32_t(random()));
    c.allowed.back() |= 1u << ((n_tokens - 1) % 32);  // one at least
  }
  return c;
}

// The token at which the cumulated distribution passes the random number, or a neighbour when it
// passes within rounding of it: weights are floats, their sum is not.
void expect_drawn(const Case& c, std::vector<double> eligible, int32_t got) {
  for (size_t id = 0; id < eligible.size() && !c.allowed.empty(); ++id)
    if ((c.allowed[id / 32] >> id % 32 & 1) == 0) eligible[id] = -double(kInf);
  const auto p = ref::distribution(eligible, c.params, c.biases, c.prompt, c.answer);
  ASSERT_GE(got, 0);
  ASSERT_LT(got, std::ssize(p));
  EXPECT_GT(p[size_t(got)], 0);
  double below = 0;
  for (int32_t id = 0; id < got; ++id) below += p[size_t(id)];
  const double u = c.params.temperature == 0 ? below : uniform(c.params.seed, uint64_t(c.step));
  EXPECT_LE(below, u + 1e-5) << "token " << got;
  EXPECT_GE(below + p[size_t(got)], u - 1e-5) << "token " << got;
}

TEST_P(SampleTest, MatchesReferenceInBatchesOfEverySize) {
  const auto params = interesting_params();
  uint64_t seed = 0;
  for (const int64_t vocab : {1, 4, 17, 336, 5000, 128260})
    for (int64_t n = 1; n <= (vocab > 5000 ? 1 : 20); n += vocab > 300 ? 19 : 1) {
      SCOPED_TRACE(testing::Message() << "vocab " << vocab << ", rows " << n);
      const int64_t n_logits = std::max<int64_t>(1, n - 2),
                    n_tokens = std::max<int64_t>(1, vocab - 3);
      const DeviceAct logits = act(normal<2>({n_logits, vocab}, 100 + uint64_t(vocab), 2), 1);
      const Matrix before = logits.values();
      std::vector<Case> cases;
      std::vector<Sample::Row> rows;
      for (int64_t i = 0; i < (vocab > 5000 ? std::ssize(params) : n); ++i) {
        cases.push_back(random_case(params[seed % params.size()], n_tokens, seed));
        cases.back().logits_row = int64_t(seed) * 7 % n_logits;  // out of order, some shared
        ++seed;
      }
      for (Case& c : cases) {
        c.place(backend());
        rows.push_back(c.row());
      }
      const auto token = poisoned_array<int32_t, 1>({std::ssize(rows)});
      backend().run(
          Sample{.logits = logits, .rows = rows, .n_tokens = n_tokens, .token = token.view()});
      const auto got = download(token);
      EXPECT_TRUE(logits.values().v == before.v) << "the logits are changed";
      for (size_t i = 0; i < cases.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "case " << seed - cases.size() + i);
        const auto row = before[cases[i].logits_row];
        expect_drawn(cases[i], {row.begin(), row.begin() + n_tokens}, got[int64_t(i)]);
        EXPECT_EQ(cases[i].history.to_host(backend()).back(), got[int64_t(i)]);
        // Alone it is the same.
        const auto one = poisoned_array<int32_t, 1>({1});
        backend().run(Sample{
            .logits = logits, .rows = {&rows[i], 1}, .n_tokens = n_tokens, .token = one.view()});
        EXPECT_EQ(download(one)[0], got[int64_t(i)]);
      }
    }
}

TEST_P(SampleTest, TiesGoToTheLowerIdAndIdsBeyondTheVocabularyAreNeverPicked) {
  Matrix values({3, 50}, 0.0);
  values[0][49] = values[2][49] = 100;  // padding of the table
  values[0][7] = values[0][8] = values[0][31] = 3;
  values[2][31] = 9;
  const DeviceAct logits = act(values);
  const std::vector<Sample::Row> rows = {
      {.logits_row = 0},
      {.params = {.temperature = 1, .seed = 5}, .logits_row = 1, .step = 2},
      {.logits_row = 2},
      {.params = {.temperature = 1, .top_k = 1}, .logits_row = 0},
      {.params = {.temperature = 1, .top_k = 10, .seed = 3}, .logits_row = 1},
      {.params = {.temperature = 1, .top_p = 0.25f, .seed = 3}, .logits_row = 1},
  };
  const auto token = poisoned_array<int32_t, 1>({6});
  backend().run(Sample{.logits = logits, .rows = rows, .n_tokens = 40, .token = token.view()});
  const auto got = download(token);
  EXPECT_EQ(got[0], 7);
  EXPECT_EQ(got[1], int32_t(uniform(5, 2) * 40));
  EXPECT_EQ(got[2], 31);
  EXPECT_EQ(got[3], 7);
  EXPECT_EQ(got[4], int32_t(uniform(3, 0) * 10));  // the first ten
  EXPECT_EQ(got[5], int32_t(uniform(3, 0) * 10));  // a quarter of forty
}

// Chi-squared of 4,000 draws with 19 degrees of freedom: above 43.8 once in a thousand seeds. The
// seed is fixed.
TEST_P(SampleTest, DrawsAreDistributedAsTheProbabilities) {
  constexpr int64_t kTokens = 20, kDraws = 4000;
  const DeviceAct logits = act(normal<2>({1, kTokens}, 1));
  Case c;
  c.params = {.temperature = 1.2f, .presence_penalty = 1, .seed = 20};
  c.answer = {3, 3, 8};
  c.place(backend());
  std::vector<Sample::Row> rows(kDraws, c.row());
  for (size_t i = 0; i < rows.size(); ++i) rows[i].params.seed += i;
  const auto token = poisoned_array<int32_t, 1>({kDraws});
  backend().run(Sample{.logits = logits, .rows = rows, .n_tokens = kTokens, .token = token.view()});
  std::vector<double> n(kTokens, 0);
  for (const int32_t id : download(token).v) ++n.at(size_t(id));
  const auto p = ref::distribution(logits.values().v, c.params, {}, {}, c.answer);
  double chi_squared = 0;
  for (size_t id = 0; id < n.size(); ++id) {
    const double want = p[id] * kDraws;
    chi_squared += (n[id] - want) * (n[id] - want) / want;
  }
  EXPECT_LT(chi_squared, 43.8);
}

TEST_P(SampleTest, OneThatIsNotBannedIsDrawn) {
  constexpr int64_t kTokens = 600;
  const DeviceAct logits = act(normal<2>({1, kTokens}, 4, 3));
  Case c;
  for (int32_t id = 0; id < kTokens; ++id)
    if (id != 437) c.biases.push_back({id, -kInf});
  c.biases.push_back({437, -100});
  c.place(backend());
  Case other;
  other.biases = {{437, -100}};
  other.allowed.resize(19);
  other.allowed[13] = 1u << 21;
  other.place(backend());
  std::vector<Sample::Row> rows;
  for (const SamplingParams& params : interesting_params()) {
    for (const Case* one : {&c, &other}) {
      rows.push_back(one->row());
      rows.back().params = params;
    }
  }
  const auto token = poisoned_array<int32_t, 1>({std::ssize(rows)});
  backend().run(Sample{.logits = logits, .rows = rows, .n_tokens = kTokens, .token = token.view()});
  for (const int32_t got : download(token).v) EXPECT_EQ(got, 437);
}

TEST_P(SampleTest, RowsWithoutATokenSaySoAndSpareTheOthers) {
  constexpr int64_t kTokens = 70;
  for (const SamplingParams& params : interesting_params()) {
    Matrix values({6, kTokens + 2}, 0.0);
    values[0][3] = std::numeric_limits<double>::quiet_NaN();
    values[1][kTokens - 1] = -std::numeric_limits<double>::quiet_NaN();
    values[2][64] = double(kInf);
    values[3][0] = double(-kInf);
    values[4][kTokens] = double(kInf);  // padding
    for (int64_t row = 0; row < 6; ++row) values[row][33] = 200;
    const DeviceAct logits = act(values);
    std::vector<LogitBias> bans;
    for (int32_t id = 0; id < kTokens; ++id) bans.push_back({id, -kInf});
    const DeviceArray<LogitBias, 1> all(backend(), bans);
    std::vector<Sample::Row> rows;
    for (int64_t i = 0; i < 6; ++i) rows.push_back({.params = params, .logits_row = i});
    rows[5].biases = all.view();
    const DeviceArray<uint32_t, 1> none(backend(), std::vector<uint32_t>(3));
    rows.push_back({.params = params, .logits_row = 5, .allowed = none.view()});
    const auto token = poisoned_array<int32_t, 1>({7});
    backend().run(
        Sample{.logits = logits, .rows = rows, .n_tokens = kTokens, .token = token.view()});
    constexpr int32_t kBad = Sample::kNotFinite, kNone = Sample::kNoneLeft;
    EXPECT_EQ(download(token).v, (std::vector<int32_t>{kBad, kBad, kBad, kBad, 33, kNone, kNone}));
  }
}

TEST_P(SampleTest, RejectsWrongShapes) {
  const DeviceAct logits = act(Matrix({2, 40}, 0.0));
  const DeviceArray<uint32_t, 1> word(backend(), std::vector<uint32_t>{~0u});
  const auto token = poisoned_array<int32_t, 1>({1}), history = poisoned_array<int32_t, 1>({4});
  const auto sample = [&](const Sample::Row& row, int64_t n_tokens) {
    backend().run(
        Sample{.logits = logits, .rows = {&row, 1}, .n_tokens = n_tokens, .token = token.view()});
  };
  EXPECT_NO_THROW(
      sample({.logits_row = 1, .step = 1, .history = history.view(), .n_prompt = 2}, 8));
  EXPECT_NO_THROW(sample({.allowed = word.view()}, 32));
  EXPECT_THROW(sample({.allowed = word.view()}, 33), Error);
  EXPECT_THROW(sample({}, 41), Error);
  EXPECT_THROW(sample({.logits_row = 2}, 8), Error);
  EXPECT_THROW(sample({.step = 2, .history = history.view(), .n_prompt = 2}, 8), Error);
}

}  // namespace
}  // namespace ei::test
