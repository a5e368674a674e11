// How a budget is shared out between heads and layers: the baselines' rules, on the same sequences.
#include "ei/policy/split.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/decode/sequence.h"
#include "tests/ref/ref.h"

namespace ei::test {
namespace {

constexpr int64_t kTokens = 400;

// The pooled votes of a layer's KV heads or query heads, by the reference ops.
std::vector<std::vector<float>> votes_of(const Sequence& s, int layer, const DecodePolicy& policy) {
  const KvLayer kv = s.cache.layer(layer);
  const Act ring = s.window.ring(layer);
  const int64_t group = kHeads / kKvHeads;
  std::vector<std::vector<float>> votes;
  const auto add = [&](const std::vector<double>& of_head) {
    const auto pooled = ref::pool(of_head, policy.pooling, policy.kernel);
    votes.emplace_back(pooled.begin(), pooled.end());
  };
  for (int64_t k = 0; k < kKvHeads; ++k) {
    Matrix keys({kTokens, kHeadDim});
    for (int64_t j = 0; j < kTokens; ++j)
      std::copy_n(static_cast<const float*>(kv.pages[k][j / kv.layout.rows]) +
                      j % kv.layout.rows * kHeadDim,
                  kHeadDim, keys[j].data);
    std::vector<std::vector<double>> of_heads;
    for (int64_t h = k * group; h < (k + 1) * group; ++h) {
      Matrix queries({policy.window, kHeadDim});
      for (int64_t i = 0; i < policy.window; ++i)
        std::copy_n(static_cast<const float*>(ring.data) +
                        (kTokens - policy.window + i) % ring.rows * ring.cols + h * kHeadDim,
                    kHeadDim, queries[i].data);
      of_heads.push_back(ref::vote(queries, keys, 0.25));
    }
    if (policy.scope == KvScope::kQueryHead) {
      for (const auto& of_head : of_heads) add(of_head);
    } else {
      add(ref::reduce(of_heads, policy.reduce));
    }
  }
  return votes;
}

TEST(SplitTest, EvenKeepsTheHighestVotesUnderEveryPoolAndScope) {
  for (const Pooling pooling : {Pooling::kNone, Pooling::kAvg, Pooling::kMax, Pooling::kBoth})
    for (const KvScope scope : {KvScope::kKvHead, KvScope::kQueryHead})
      for (const GroupReduce reduce : {GroupReduce::kMean, GroupReduce::kMax}) {
        SCOPED_TRACE(testing::Message() << int(pooling) << int(scope) << int(reduce));
        DecodePolicy policy = small_policy();
        policy.pooling = pooling;
        policy.scope = scope;
        policy.reduce = reduce;
        Sequence s(policy);
        s.feed(kTokens);
        std::vector<std::vector<std::vector<float>>> votes;
        for (int l = 0; l < kLayers; ++l) votes.push_back(votes_of(s, l, policy));
        Compressor(policy, kTokens - 4).run(*s.backend, s.cache, s.window, kHeads);
        for (int l = 0; l < kLayers; ++l)
          for (size_t h = 0; h < votes[size_t(l)].size(); ++h)
            EXPECT_EQ(
                s.positions(l, int64_t(h)),
                ref::keep_top(votes[size_t(l)][h], policy.budget - policy.window, policy.window))
                << l << " " << h;
        // Every head is charged for: a query head's rows are rows of their own.
        const int64_t heads = scope == KvScope::kKvHead ? kKvHeads : kHeads;
        EXPECT_EQ(s.cache.entry_bytes(),
                  kLayers * heads * policy.budget * 2 * kHeadDim * int64_t{sizeof(float)});
      }
}

TEST(SplitTest, AdaptiveFollowsTheVotesAndConservesTheLayersBudget) {
  for (const float floor : {0.0f, 0.2f, 0.5f, 1.0f}) {
    SCOPED_TRACE(testing::Message() << "floor " << floor);
    DecodePolicy policy = small_policy();
    policy.split = Split::kAdaptive;
    policy.pooling = Pooling::kNone;  // no two votes are equal
    policy.floor = floor;
    Sequence s(policy), even(policy);
    s.feed(kTokens);
    even.feed(kTokens);
    std::vector<std::vector<std::vector<float>>> votes;
    for (int l = 0; l < kLayers; ++l) votes.push_back(votes_of(s, l, policy));
    Compressor(policy, kTokens - 4).run(*s.backend, s.cache, s.window, kHeads);
    DecodePolicy snapkv = policy;
    snapkv.split = Split::kEven;
    Compressor(snapkv, kTokens - 4).run(*even.backend, even.cache, even.window, kHeads);

    const int64_t n_even = policy.budget - policy.window;
    for (int l = 0; l < kLayers; ++l) {
      const auto n_top = ref::adaptive_split(votes[size_t(l)], n_even, floor);
      int64_t sum = 0;
      for (int64_t h = 0; h < kKvHeads; ++h) {
        const auto want =
            ref::keep_top(votes[size_t(l)][size_t(h)], n_top[size_t(h)], policy.window);
        EXPECT_EQ(s.positions(l, h), want) << l << " " << h;
        if (floor == 1) {
          EXPECT_EQ(s.positions(l, h), even.positions(l, h)) << l << " " << h;
        }
        sum += s.cache.rows(l, h);
      }
      EXPECT_LE(std::abs(sum - kKvHeads * policy.budget), kKvHeads / 2);
      if (floor < 1) {
        EXPECT_GT(std::abs(s.cache.rows(l, 0) - s.cache.rows(l, 1)), 5) << "heads look alike";
      }
    }
  }
}

TEST(SplitTest, EqualVotesOfAPoolConserveTheBudget) {
  DecodePolicy policy = small_policy();
  policy.split = Split::kAdaptive;
  policy.kernel = 101;
  Sequence s(policy);
  s.feed(kTokens);
  Compressor(policy, kTokens - 4).run(*s.backend, s.cache, s.window, kHeads);
  EXPECT_LE(std::abs(s.cache.rows(0, 0) + s.cache.rows(0, 1) - kKvHeads * policy.budget), 1);
}

TEST(SplitTest, AdaptiveCompetesPerQueryHeadInQueryScope) {
  DecodePolicy policy = small_policy();
  policy.split = Split::kAdaptive;
  policy.scope = KvScope::kQueryHead;
  Sequence s(policy);
  s.feed(kTokens);
  Compressor(policy, kTokens - 4).run(*s.backend, s.cache, s.window, kHeads);
  for (int l = 0; l < kLayers; ++l) {
    int64_t sum = 0;
    for (int64_t h = 0; h < kHeads; ++h) sum += s.cache.rows(l, h);
    EXPECT_LE(std::abs(sum - kHeads * policy.budget), kHeads / 2);
  }
}

// Heads that hold more than budget + regrow must not be compressed at every step.
TEST(SplitTest, RaggedHeadsGrowAgainTogether) {
  for (const Split split : {Split::kAdaptive, Split::kPyramid}) {
    DecodePolicy policy = small_policy();
    policy.split = split;
    policy.floor = 0;
    policy.regrow = 20;
    Sequence s(policy);
    s.feed(kTokens);
    Compressor compressor(policy, kTokens - 4);
    for (int round = 0; round < 3; ++round) {
      compressor.run(*s.backend, s.cache, s.window, kHeads);
      ASSERT_NEAR(double(s.cache.n_rows()) / double(s.cache.n_heads()), 100, 1);
      int n = 0;
      for (; !compressor.due(s.cache); ++n) s.feed(1);
      EXPECT_NEAR(n, 20, 1);
    }
  }
}

TEST(SplitTest, AdaptiveCapacityIsRounded) {
  EXPECT_EQ(adaptive_capacity(10, 100, 0), 10);
  EXPECT_EQ(adaptive_capacity(10, 100, 1), 100);
  EXPECT_EQ(adaptive_capacity(10, 100, 0.2f), 28);
  EXPECT_EQ(adaptive_capacity(3, 4, 0.5f), 4);  // 3.5
}

TEST(SplitTest, PyramidSumsToTheTotalAndFallsEvenly) {
  for (const int64_t n_layers : {1, 2, 3, 8, 27, 32})
    for (const int64_t n_even : {1, 17, 96, 992, 2016})
      for (const int64_t n_most : {n_even, 2 * n_even - n_even / 3, int64_t{100000}}) {
        SCOPED_TRACE(testing::Message() << n_layers << " layers " << n_even << " of " << n_most);
        std::vector<int64_t> n;
        for (int64_t l = 0; l < n_layers; ++l)
          n.push_back(pyramid_capacity(l, n_layers, n_even, n_most, 20));
        EXPECT_EQ(std::accumulate(n.begin(), n.end(), int64_t{0}), n_layers * n_even);
        const auto first = double(std::min(2 * n_even - n_even / 20, n_most));
        for (int64_t l = 0; l < n_layers && n_layers > 1; ++l) {
          const double want =
              first - 2 * (first - double(n_even)) * double(l) / double(n_layers - 1);
          EXPECT_NEAR(double(n[size_t(l)]), want, 1) << l;
        }
      }
}

TEST(SplitTest, PyramidKeepsEachLayersHighestVotes) {
  DecodePolicy policy = small_policy();
  policy.split = Split::kPyramid;
  policy.pooling = Pooling::kAvg;
  Sequence s(policy);
  s.feed(kTokens);
  std::vector<std::vector<std::vector<float>>> votes;
  for (int l = 0; l < kLayers; ++l) votes.push_back(votes_of(s, l, policy));
  Compressor(policy, kTokens - 4).run(*s.backend, s.cache, s.window, kHeads);
  // 92 beside the window: 92 / 20 = 4 for the last of two layers, 2 * 92 - 4 for the first.
  for (int l = 0; l < kLayers; ++l)
    for (int64_t h = 0; h < kKvHeads; ++h)
      EXPECT_EQ(s.positions(l, h),
                ref::keep_top(votes[size_t(l)][size_t(h)], l == 0 ? 180 : 4, policy.window));
}

TEST(SplitTest, StreamingKeepsExactlyItsTokens) {
  DecodePolicy policy = DecodePolicy::streaming();
  policy.budget = 100;
  policy.regrow = 50;
  Sequence s(policy);
  EXPECT_EQ(s.window.n_rows(), 0);
  s.feed(kTokens);
  Compressor compressor(policy, kTokens);
  for (int64_t n = kTokens; n <= kTokens + 100; n += 50) {
    ASSERT_TRUE(compressor.due(s.cache));
    compressor.run(*s.backend, s.cache, s.window, kHeads);
    ref::Rows want = {0, 1, 2, 3};
    for (int64_t i = n - 96; i < n; ++i) want.push_back(i);
    for (int l = 0; l < kLayers; ++l)
      for (int64_t h = 0; h < kKvHeads; ++h) EXPECT_EQ(s.positions(l, h), want);
    for (int i = 0; i < 50; ++i) {
      ASSERT_FALSE(compressor.due(s.cache));
      s.feed(1);
    }
  }
}

}  // namespace
}  // namespace ei::test
