#include "ei/ops/select_blocks.h"

#include <random>

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SelectBlocksTest);

// Integers scores: many ties. Columns of blocks that are not past are NaN.
Array<float, 3> random_scores(int64_t heads, int64_t segments, int64_t width, int64_t first,
                              int64_t segment, int64_t block, bool ties) {
  std::mt19937_64 random(7);
  std::normal_distribution<float> distribution(0, ties ? 3 : 30);
  Array<float, 3> score({heads, segments, width}, NAN);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t s = 0; s < segments; ++s)
      for (int64_t b = 0; b < (first + s) * segment / block; ++b)
        score[h][s][b] = ties ? std::round(distribution(random)) : distribution(random);
  return score;
}

TEST_P(SelectBlocksTest, MatchesReference) {
  struct Case {
    int64_t heads, first, n, segment, block, sink, recent;
  };
  for (const Case& c : {Case{1, 0, 1, 8, 8, 0, 0},
                        {2, 1, 4, 8, 8, 0, 0},
                        {3, 7, 5, 64, 8, 2, 3},
                        {1, 40, 3, 512, 8, 0, 0},
                        {2, 9, 2, 96, 32, 1, 0}})
    for (const bool ties : {false, true})
      for (const Rank rank : {Rank::kScore, Rank::kProbability}) {
        SCOPED_TRACE(testing::Message() << c.heads << " heads, " << c.n << " segments from "
                                        << c.first << ", ties " << ties);
        const int64_t width = (c.first + c.n - 1) * c.segment / c.block;
        const Array<float, 3> score =
            random_scores(c.heads, c.n, width + 1, c.first, c.segment, c.block, ties);
        // None, one, some, all but one, all, or dense.
        Array<int32_t, 2> blocks({c.heads, c.n});
        int64_t most = 0;
        for (int64_t h = 0; h < c.heads; ++h)
          for (int64_t s = 0; s < c.n; ++s) {
            const auto past = int32_t((c.first + s) * c.segment / c.block);
            const int32_t choices[] = {
                past / 3 + int32_t(c.sink + c.recent), past, past - 1, 0, kAllBlocks,
                int32_t(c.sink + c.recent) + 1};
            blocks[h][s] = std::min(past, std::max(kAllBlocks, choices[(h + s) % 6]));
            most = std::max<int64_t>(most, blocks[h][s]);
          }
        const auto on_device = upload<float>(score);
        const auto wanted = upload<int32_t>(blocks);
        const auto count = poisoned_array<int32_t, 2>({c.heads, c.n});
        const auto index = poisoned_array<int32_t, 3>({c.heads, c.n, most});
        backend().run(SelectBlocks{.score = on_device.view(),
                                   .blocks = wanted.view(),
                                   .first_segment = c.first,
                                   .segment = c.segment,
                                   .block = c.block,
                                   .rank = rank,
                                   .sink_blocks = c.sink,
                                   .recent_blocks = c.recent,
                                   .out = {count.view(), index.view()}});
        EXPECT_EQ(download(count).v, blocks.v);
        const auto got = download(index);
        for (int64_t h = 0; h < c.heads; ++h)
          for (int64_t s = 0; s < c.n; ++s) {
            if (blocks[h][s] <= 0) continue;
            const int64_t past = (c.first + s) * c.segment / c.block;
            const auto row = score[h][s];
            const std::vector<float> scores(row.data, row.data + past);
            const auto chosen = got[h][s];
            const ref::Rows rows(chosen.data, chosen.data + blocks[h][s]);
            EXPECT_EQ(rows, ref::select_blocks(scores, blocks[h][s], rank, c.sink, c.recent))
                << "head " << h << " segment " << s;
          }
      }
}

// Real models: all but a few probabilities underflow to equal zeros, the lowest blocks fill up.
TEST_P(SelectBlocksTest, ProbabilitiesThatUnderflowTie) {
  Array<float, 3> score({1, 1, 16}, 0.0f);
  for (int64_t b = 0; b < 16; ++b) score[0][0][b] = float(b);
  score[0][0][9] = 5000;
  const auto on_device = upload<float>(score);
  const auto wanted = upload<int32_t>(Array<int32_t, 2>({1, 1}, 3));
  const auto count = poisoned_array<int32_t, 2>({1, 1});
  const auto index = poisoned_array<int32_t, 3>({1, 1, 3});
  SelectBlocks op{.score = on_device.view(),
                  .blocks = wanted.view(),
                  .first_segment = 2,
                  .segment = 64,
                  .block = 8,
                  .rank = Rank::kProbability,
                  .out = {count.view(), index.view()}};
  backend().run(op);
  EXPECT_EQ(download(index).v, (std::vector<int32_t>{0, 1, 9}));
  op.rank = Rank::kScore;
  backend().run(op);
  EXPECT_EQ(download(index).v, (std::vector<int32_t>{9, 14, 15}));
}

TEST_P(SelectBlocksTest, RejectsScoresOfTooFewBlocks) {
  const auto score = upload<float>(Array<float, 3>({1, 2, 8}));
  const auto wanted = upload<int32_t>(Array<int32_t, 2>({1, 2}, 3));
  const auto count = poisoned_array<int32_t, 2>({1, 2});
  const auto index = poisoned_array<int32_t, 3>({1, 2, 3});
  EXPECT_THROW(backend().run(SelectBlocks{.score = score.view(),
                                          .blocks = wanted.view(),
                                          .first_segment = 1,
                                          .segment = 64,
                                          .block = 8,
                                          .out = {count.view(), index.view()}}),
               Error);
}

}  // namespace
}  // namespace ei::test
