#include "apps/bench/plan.h"

#include <gtest/gtest.h>

#include "ei/base/error.h"

namespace ei::bench {
namespace {

TEST(BenchPlanTest, NamesWorkAsLlamaBenchDoes) {
  EXPECT_EQ((Work{Work::Kind::kRead, 8192, 0}).name(), "pp8192");
  EXPECT_EQ((Work{Work::Kind::kWrite, 32, 0}).name(), "tg32");
  EXPECT_EQ((Work{Work::Kind::kWrite, 32, 32768}).name(), "tg32 @ d32768");
}

TEST(BenchPlanTest, AnAnswerNeedsAPromptAndAnUntimedFirstToken) {
  EXPECT_EQ((Work{Work::Kind::kWrite, 32, 0}).prompt_tokens(), 1);
  EXPECT_EQ((Work{Work::Kind::kWrite, 32, 700}).prompt_tokens(), 700);
  EXPECT_EQ((Work{Work::Kind::kWrite, 32, 700}).answer_tokens(), 33);
  EXPECT_EQ((Work{Work::Kind::kRead, 512, 0}).prompt_tokens(), 512);
}

TEST(BenchPlanTest, ReadsByEveryPrefillAndWritesFromEveryCache) {
  Options options;
  options.prompts = {512, 0, 8192};
  options.answers = {32};
  options.depths = {0, 4096};
  options.prefills = {"dense", "entropy"};
  options.decodes = {"full", "latent"};
  const std::vector<Group> plan = make_plan(options);
  ASSERT_EQ(plan.size(), 4u);
  EXPECT_EQ(plan[0].work.name(), "pp512");
  EXPECT_EQ(plan[1].work.name(), "pp8192");
  EXPECT_EQ(plan[2].work.name(), "tg32");
  EXPECT_EQ(plan[3].work.name(), "tg32 @ d4096");
  ASSERT_EQ(plan[1].cases.size(), 2u);
  EXPECT_TRUE(plan[1].cases[0].prefill.is_dense());
  EXPECT_FALSE(plan[1].cases[1].prefill.is_dense());
  ASSERT_EQ(plan[3].cases.size(), 2u);
  for (const Case& c : plan[3].cases) EXPECT_EQ(c.prefill_name, "entropy");  // the last one
  EXPECT_TRUE(plan[3].cases[0].decode.is_full());
  EXPECT_FALSE(plan[3].cases[1].decode.is_full());
}

TEST(BenchPlanTest, DenseLayersMultiplyTheEntropyRows) {
  Options options;
  options.prompts = {8192};
  options.answers = {};
  options.dense_layers = {1, 0};
  const std::vector<Group> plan = make_plan(options);
  ASSERT_EQ(plan.size(), 1u);
  ASSERT_EQ(plan[0].cases.size(), 3u);
  EXPECT_EQ(plan[0].cases[0].prefill_name, "dense");
  EXPECT_EQ(plan[0].cases[1].prefill_name, "entropy, 1 dense layer");
  EXPECT_EQ(plan[0].cases[2].prefill_name, "entropy, 0 dense layers");
  EXPECT_EQ(plan[0].cases[2].prefill.dense_layers, 0);
}

TEST(BenchPlanTest, NothingToMeasureIsAnError) {
  Options options;
  options.prompts = {0};
  options.answers = {0};
  EXPECT_THROW(make_plan(options), Error);
}

}  // namespace
}  // namespace ei::bench
