#include "ei/decode/sampler.h"

#include <cmath>

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SamplerTest);

constexpr int64_t kVocabulary = 50;

// Answers that differ in everything, drawn together from the rows of `logits`.
struct Answers {
  explicit Answers(Backend& backend) : sampler(backend, kVocabulary, 4) {
    const std::vector<int32_t> prompt = {1, 2, 3, 3, 40};
    const auto add = [&](const SamplingParams& params, const SamplerState::Options& options) {
      states.emplace_back(backend, params, prompt, /*max_new=*/20, options);
    };
    add({.repetition_penalty = 1.4f}, {});
    add({.temperature = 1, .top_k = 10, .seed = 1}, {.ends = {7}, .min_tokens = 5});
    add({.temperature = 2, .frequency_penalty = 1, .seed = 2},
        {.biases = {{9, 2}, {30, -INFINITY}}});
    add({.temperature = 1, .presence_penalty = 1, .seed = 2}, {});
    for (int64_t i = 0; i < 4; ++i) rows.push_back({&states[size_t(i)], i});
  }
  std::vector<int32_t> draw(const Act& logits, size_t first = 0, size_t n = 4) {
    const auto drawn = sampler.draw(logits, std::span(rows).subspan(first, n));
    return {drawn.begin(), drawn.end()};
  }

  Sampler sampler;
  std::vector<SamplerState> states;
  std::vector<Sampler::Row> rows;
};

TEST_P(SamplerTest, AnswersAreTheSameAloneAndTogether) {
  Answers together(backend()), alone(backend());
  for (uint64_t step = 0; step < 20; ++step) {
    const DeviceAct logits = act(normal<2>({4, kVocabulary + 6}, step));
    std::vector<int32_t> each;
    for (size_t i = 0; i < 4; ++i) each.push_back(alone.draw(logits, i, 1).at(0));
    EXPECT_EQ(together.draw(logits), each) << "step " << step;
  }
}

TEST_P(SamplerTest, PenaltiesCountWhatWasDrawn) {
  Matrix values({1, kVocabulary}, 0.0);
  for (int64_t id = 0; id < 4; ++id) values[0][id] = 4 - 0.5 * double(id);
  const DeviceAct logits = act(values);
  const auto greedy = [&](SamplingParams params, int64_t n) {
    SamplerState state(backend(), params, std::vector<int32_t>{0}, n, {});
    Sampler sampler(backend(), kVocabulary, 1);
    const Sampler::Row row = {.state = &state};
    std::vector<int32_t> drawn;
    for (int64_t i = 0; i < n; ++i) drawn.push_back(sampler.draw(logits, {&row, 1})[0]);
    return drawn;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(greedy({}, 3), (Ids{0, 0, 0}));
  EXPECT_EQ(greedy({.repetition_penalty = 1.2f}, 3), (Ids{1, 0, 0}));    // 0 is in the prompt
  EXPECT_EQ(greedy({.presence_penalty = 0.75f}, 4), (Ids{0, 1, 0, 0}));  // once for all
  EXPECT_EQ(greedy({.frequency_penalty = 0.75f}, 4), (Ids{0, 1, 0, 2}));
}

TEST_P(SamplerTest, EndsAreBannedUntilThereAreEnoughTokens) {
  Matrix values({1, kVocabulary}, 0.0);
  values[0][7] = 9, values[0][8] = 8, values[0][9] = 7;
  const DeviceAct logits = act(values);
  SamplerState state(backend(), {}, {}, 10,
                     {.biases = {{9, 1.5f}}, .ends = {7, 8}, .min_tokens = 2});
  Sampler sampler(backend(), kVocabulary, 1);
  const Sampler::Row row = {.state = &state};
  std::vector<int32_t> drawn;
  for (int i = 0; i < 3; ++i) drawn.push_back(sampler.draw(logits, {&row, 1})[0]);
  EXPECT_EQ(drawn, (std::vector<int32_t>{9, 9, 7}));
}

TEST_P(SamplerTest, NothingButWhatIsAllowedIsDrawn) {
  SamplerState state(backend(), {.temperature = 5, .repetition_penalty = 1.2f}, {}, 50, {});
  Sampler sampler(backend(), kVocabulary, 1);
  const Sampler::Row row = {.state = &state};
  for (int32_t id = 0; id < kVocabulary; ++id) {
    std::vector<uint32_t> words(2);
    words[size_t(id) / 32] = 1u << id % 32;
    state.allow(backend(), words);
    EXPECT_EQ(sampler.draw(act(normal<2>({1, kVocabulary + 6}, uint64_t(id), 3)), {&row, 1})[0],
              id);
  }
}

TEST_P(SamplerTest, AFailureLeavesEveryAnswerAsItWas) {
  Answers answers(backend()), untouched(backend());
  const DeviceAct logits = act(normal<2>({4, kVocabulary}, 1));
  EXPECT_EQ(answers.draw(logits), untouched.draw(logits));

  EXPECT_THROW(answers.draw(logits.act().slice(0, 3)), Error);  // the last row's are missing
  Matrix values = logits.values();
  values[2][8] = std::numeric_limits<double>::quiet_NaN();
  const DeviceAct broken = act(values);
  const auto drawn = answers.draw(broken);
  EXPECT_THROW(check_drawn(drawn[2]), Error);
  EXPECT_THROW(check_drawn(Sample::kNoneLeft), NothingLeft);
  EXPECT_EQ(answers.states[2].n_drawn(), 1);
  for (const size_t i : {0u, 1u, 3u}) {
    EXPECT_NO_THROW(check_drawn(drawn[i]));
    EXPECT_EQ(untouched.draw(logits, i, 1)[0], drawn[i]);
  }
  for (int step = 0; step < 3; ++step)
    EXPECT_EQ(answers.draw(logits, 2, 1), untouched.draw(logits, 2, 1));
}

TEST_P(SamplerTest, RejectsSettingsOutOfRangeAndTooManyRows) {
  for (const SamplingParams& params :
       {SamplingParams{.top_k = -2}, {.presence_penalty = 2.1f}, {.frequency_penalty = -2.1f}})
    EXPECT_THROW(SamplerState(backend(), params, {}, 1, {}), Error);
  Answers answers(backend());
  const std::vector<Sampler::Row> rows(5, {&answers.states[0], 0});
  EXPECT_THROW(answers.sampler.draw(act(Matrix({1, kVocabulary}, 0.0)), rows), Error);
}

}  // namespace
}  // namespace ei::test
