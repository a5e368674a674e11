#include "apps/eval/head_profile.h"

#include <gtest/gtest.h>

#include <numeric>

#include "apps/eval/document.h"
#include "tests/support/files.h"

namespace ei::eval {
namespace {

Request request(const Engine& engine) {
  const Document document =
      make_document({.n_tokens = 3300, .n_needles = 4, .seed = 1},
                    [&](std::string_view text) { return int64_t(engine.tokenize(text).size()); });
  Request request;
  request.messages = {{"user", {document.text, document.needles[1].question()}}};
  request.sampling = SamplingParams{};
  request.prefill.budget.base = 512;
  request.prefill.threshold_len = 1024;
  return request;
}

TEST(ProfileTest, AgreesWithWhatTheSessionReports) {
  Engine engine(test::kNeedle, {.threads = 1});
  Request asked = request(engine);
  const Profile got = profile(engine, asked);
  const Generation want = Session(engine).generate(asked);
  EXPECT_EQ(got.generation.sparsity.density, want.sparsity.density);
  EXPECT_EQ(got.generation.tokens.size(), 17u);  // the gap of 16, and one that ends it
  EXPECT_TRUE(
      std::equal(got.generation.tokens.begin(), got.generation.tokens.end(), want.tokens.begin()));
  EXPECT_FALSE(got.generation.kv.compressed);

  const int64_t n_segments = (want.prompt_tokens + 511) / 512, per_segment = 512 / 8;
  ASSERT_EQ(got.heads.size(), 8u);
  int64_t n_rigid = 0, n_dynamic = 0, n_sparse = 0, n_blocks = 0;
  double kept = 0;
  for (size_t l = 0; l < 8; ++l) {
    ASSERT_EQ(got.heads[l].size(), 2u);
    for (const Profile::Head& head : got.heads[l]) {
      const double votes = std::accumulate(head.votes.begin(), head.votes.end(), 0.0);
      EXPECT_EQ(std::ssize(head.votes), Profile::kVoteBins);
      EXPECT_GT(votes, 0.01);  // the window itself takes the rest
      EXPECT_LE(votes, 1 + 1e-5);
      if (l == 0) {
        EXPECT_TRUE(head.segments.empty());
        continue;
      }
      ++(head.rigid ? n_rigid : n_dynamic);
      ASSERT_EQ(std::ssize(head.segments), n_segments);
      std::vector<double> there(size_t(n_segments), 0);
      for (int64_t s = 0; s < n_segments; ++s) {
        const Profile::Segment& segment = head.segments[size_t(s)];
        EXPECT_EQ(segment.dense, s < 2 || s == n_segments - 1) << s;
        EXPECT_LE(segment.entropy, std::log(double(std::max<int64_t>(1, s * per_segment))) + 1e-4);
        EXPECT_GE(segment.budget, 512);
        EXPECT_LE(segment.budget, 3 * 512);
        if (segment.dense) {
          EXPECT_EQ(segment.blocks, s * per_segment);
          continue;
        }
        EXPECT_EQ(segment.blocks, std::min<int64_t>(s * per_segment, int64_t(segment.budget) / 8));
        ++n_sparse;
        n_blocks += segment.blocks;
        for (int64_t d = 0; d < s; ++d) there[size_t(d)] += double(per_segment);
      }
      for (size_t d = 0; d < head.kept_by_distance.size(); ++d) {
        EXPECT_GE(head.kept_by_distance[d], 0);
        EXPECT_LE(head.kept_by_distance[d], 1);
        kept += head.kept_by_distance[d] * there[d];
      }
    }
  }
  EXPECT_EQ(n_rigid, want.sparsity.rigid_heads);
  EXPECT_EQ(n_dynamic, want.sparsity.dynamic_heads);
  EXPECT_NEAR(double(n_blocks) / double(n_sparse), want.sparsity.kept_blocks_mean, 1e-9);
  EXPECT_NEAR(kept, double(n_blocks), 1e-6 * double(n_blocks));
}

TEST(ProfileTest, DistancesAreCountedBackwards) {
  Engine engine(test::kNeedle, {.threads = 1});
  Request asked = request(engine);
  asked.prefill.budget.base = 8;  // one block: the recent one
  asked.prefill.budget.alpha = 0;
  asked.prefill.local = 8;
  const Profile got = profile(engine, asked);
  for (const Profile::Head& head : got.heads[3]) {
    EXPECT_NEAR(head.kept_by_distance[0], 1.0 / 64, 1e-9);
    for (size_t d = 1; d < head.kept_by_distance.size(); ++d)
      EXPECT_EQ(head.kept_by_distance[d], 0) << d;
  }
}

TEST(ProfileTest, ChunksChangeNothingAndDenseHasNothing) {
  Engine small(test::kNeedle, {.threads = 1, .chunk = 512}),
      large(test::kNeedle, {.threads = 1, .chunk = 8192});
  Request asked = request(small);
  const Profile a = profile(small, asked), b = profile(large, asked);
  for (size_t s = 0; s < a.heads[4][1].segments.size(); ++s)
    EXPECT_EQ(a.heads[4][1].segments[s].blocks, b.heads[4][1].segments[s].blocks) << s;
  asked.prefill = PrefillPolicy::dense();
  asked.decode = DecodePolicy::full();
  EXPECT_TRUE(profile(small, asked).heads[4][1].segments.empty());
  asked.prefill.block = 7;
  EXPECT_NE(test::error_of([&] { profile(small, asked); }), "");
}

}  // namespace
}  // namespace ei::eval
