#include "ei/decode/compress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ei/base/error.h"
#include "tests/decode/sequence.h"
#include "tests/policy/extremes.h"

namespace ei::test {
namespace {

TEST(CompressTest, WaitsForTheGap) {
  const DecodePolicy policy = small_policy();
  Sequence s(policy);
  s.feed(500);
  Compressor compressor(policy, 500);
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(compressor.due(s.cache)) << i;
    s.feed(1);
  }
  EXPECT_TRUE(compressor.due(s.cache));
}

// Whatever a setting may be, the cache is compressed or left alone: nothing overflows (UBSan
// looks).
TEST(CompressTest, CompressesAtTheEndsOfAllRanges) {
  for (const auto& [name, policy] : extremes(small_policy())) {
    Sequence s(policy);
    s.feed(300);
    Compressor compressor(policy, 300);
    for (int i = 0; i < 10; ++i) {
      if (compressor.due(s.cache)) compressor.run(*s.backend, s.cache, s.window, kHeads);
      s.feed(1);
    }
    for (int64_t h = 0; h < s.cache.layer(0).n_kv_heads(); ++h)
      EXPECT_GE(s.cache.rows(0, h), std::min<int64_t>(policy.budget, 5)) << name;
  }
}

TEST(CompressTest, SnapKvCompressesRightAfterThePrompt) {
  DecodePolicy policy = small_policy();
  policy.gap = -1;
  Sequence s(policy);
  s.feed(500);
  EXPECT_TRUE(Compressor(policy, 500).due(s.cache));
}

TEST(CompressTest, ShortPromptsAreLeftAloneUntilTheyHaveGrown) {
  const DecodePolicy policy = small_policy();
  Sequence s(policy);
  s.feed(90);
  Compressor compressor(policy, 90);
  for (; s.cache.n_tokens() < 150; s.feed(1)) ASSERT_FALSE(compressor.due(s.cache));
  EXPECT_TRUE(compressor.due(s.cache));
}

TEST(CompressTest, KeepsBudgetAndWindowAndFreesPages) {
  for (const int64_t heads : {kKvHeads, kHeads}) {
    DecodePolicy policy = small_policy();
    policy.scope = heads == kHeads ? KvScope::kQueryHead : KvScope::kKvHead;
    Sequence s(policy);
    s.feed(1000);
    const int64_t before = s.pool.bytes_in_use();
    EXPECT_EQ(before, s.cache.bytes());
    Compressor(policy, 996).run(*s.backend, s.cache, s.window, kHeads);
    EXPECT_EQ(s.cache.bytes(),
              kLayers * heads * 2 * s.shape.layout.bytes());  // 100 rows in pages of 64
    EXPECT_EQ(s.pool.bytes_in_use(), s.cache.bytes());
    EXPECT_EQ(s.cache.n_tokens(), 1000);
    for (int l = 0; l < kLayers; ++l)
      for (int64_t h = 0; h < heads; ++h) {
        const auto kept = s.positions(l, h);
        ASSERT_EQ(kept.size(), 100u);
        EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
        EXPECT_EQ(std::adjacent_find(kept.begin(), kept.end()), kept.end());
        for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(kept[size_t(92 + i)], 992 + i);
      }
    // Query heads of a group keep rows of their own.
    if (heads == kHeads) {
      EXPECT_NE(s.positions(0, 0), s.positions(0, 1));
    }
  }
}

TEST(CompressTest, CompressesAgainAfterGrowing) {
  const DecodePolicy policy = small_policy();
  Sequence s(policy);
  s.feed(300);
  Compressor compressor(policy, 296);
  ASSERT_TRUE(compressor.due(s.cache));
  compressor.run(*s.backend, s.cache, s.window, kHeads);
  for (int i = 0; i < 50; ++i) {
    ASSERT_FALSE(compressor.due(s.cache)) << i;
    s.feed(1);
  }
  ASSERT_TRUE(compressor.due(s.cache));
  compressor.run(*s.backend, s.cache, s.window, kHeads);
  EXPECT_EQ(s.cache.n_rows(), 100 * s.cache.n_heads());
  EXPECT_EQ(s.positions(0, 0).back(), 349);
}

// Feeds token after token; how many until the cache is compressed.
int64_t written_until_compressed(Sequence& s, Compressor& compressor, int64_t most) {
  for (int64_t n = 0; n <= most; ++n, s.feed(1)) {
    EXPECT_EQ(compressor.due(s.cache), n % Compressor::kLook == 0) << n;
    if (compressor.due(s.cache)) compressor.run(*s.backend, s.cache, s.window, kHeads);
    if (s.cache.compacted()) return n;
  }
  return -1;
}

TEST(CompressTest, AnAutomaticGapEndsWhenTheVotesHaveSettled) {
  DecodePolicy policy = small_policy();
  policy.gap = kAutoGap;
  policy.window = 16;
  {
    Sequence s(policy);
    s.same_queries = true;
    s.feed(500);
    Compressor compressor(policy, 500);
    EXPECT_EQ(written_until_compressed(s, compressor, 40), Compressor::kLook);
    EXPECT_EQ(s.cache.rows(0, 0), 100);
  }
  Sequence s(policy);  // every token asks for something else: never before a whole window
  s.feed(500);
  Compressor compressor(policy, 500);
  EXPECT_EQ(written_until_compressed(s, compressor, 40), policy.window);

  DecodePolicy fixed = policy;
  fixed.gap = policy.window;
  Sequence same(fixed);
  same.feed(500);
  for (int i = 0; i < policy.window; ++i) same.feed(1);
  Compressor(fixed, 500).run(*same.backend, same.cache, same.window, kHeads);
  for (int64_t h = 0; h < kKvHeads; ++h) EXPECT_EQ(s.positions(1, h), same.positions(1, h));
}

// One head that asks for something new is enough to wait, wherever it is.
TEST(CompressTest, AnAutomaticGapWaitsForEveryHead) {
  for (const int layer : {0, static_cast<int>(kLayers) - 1}) {
    DecodePolicy policy = small_policy();
    policy.gap = kAutoGap;
    policy.window = 16;
    Sequence s(policy);
    s.same_queries = true;
    s.feed(500);
    Compressor compressor(policy, 500);
    compressor.run(*s.backend, s.cache, s.window, kHeads);
    // From here on the last head of the layer asks for the opposite.
    auto& q = s.first_queries[layer];
    for (size_t i = q.size() - kHeadDim; i < q.size(); ++i) q[i] = -8 * q[i];
    s.feed(Compressor::kLook);
    compressor.run(*s.backend, s.cache, s.window, kHeads);
    EXPECT_FALSE(s.cache.compacted()) << layer;
    s.feed(policy.window - Compressor::kLook);
    compressor.run(*s.backend, s.cache, s.window, kHeads);
    EXPECT_TRUE(s.cache.compacted()) << layer;
  }
}

TEST(CompressTest, AnAutomaticGapNeedsVotes) {
  DecodePolicy policy = DecodePolicy::streaming();
  policy.gap = kAutoGap;
  EXPECT_THROW(validate(policy), Error);
  EXPECT_EQ(DecodePolicy().longest_gap(), 16);
  EXPECT_EQ(DecodePolicy::snapkv().longest_gap(), 0);
}

// What is kept, by plain loops in double from the method's formula.
TEST(CompressTest, KeepsTheRowsTheWindowVotesFor) {
  for (const bool off_by_one : {false, true}) {
    DecodePolicy policy = small_policy();
    policy.kernel = 9;
    policy.off_by_one = off_by_one;
    Sequence s(policy);
    s.feed(400);
    const int64_t n = 400, w = policy.window, group = kHeads / kKvHeads;
    const KvLayer kv = s.cache.layer(1);
    const Act ring = s.window.ring(1);
    const auto query = [&](int64_t position, int64_t head) {
      return static_cast<const float*>(ring.data) + (position % ring.rows) * ring.cols +
             head * kHeadDim;
    };
    std::vector<std::vector<int64_t>> want;
    for (int64_t h = 0; h < kKvHeads; ++h) {
      std::vector<double> vote(size_t(n - w), 0);
      for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < w; ++i) {
          const float* q = query(n - w + i - (off_by_one ? 1 : 0), h * group + g);
          std::vector<double> e;
          double z = 0;
          for (int64_t j = 0; j <= n - w + i; ++j) {
            const auto* page = static_cast<const float*>(kv.pages[h][j / kv.layout.rows]);
            double dot = 0;
            for (int64_t c = 0; c < kHeadDim; ++c)
              dot += double(q[c]) * double(page[(j % kv.layout.rows) * kHeadDim + c]);
            e.push_back(std::exp(dot / 4));
            z += e.back();
          }
          for (int64_t j = 0; j < n - w; ++j) vote[size_t(j)] += e[size_t(j)] / z;
        }
      // The mean of 5, or half of the highest such mean in the pool.
      const auto around = [&](int64_t j, int64_t reach, auto&& take) {
        for (int64_t c = std::max<int64_t>(0, j - reach); c <= std::min(n - w - 1, j + reach); ++c)
          take(size_t(c));
      };
      std::vector<double> mean(vote.size()), pooled(vote.size());
      for (int64_t j = 0; j < n - w; ++j)
        around(j, 2, [&](size_t c) { mean[size_t(j)] += vote[c] / 5; });
      for (int64_t j = 0; j < n - w; ++j) {
        pooled[size_t(j)] = mean[size_t(j)];
        around(j, policy.kernel / 2,
               [&](size_t c) { pooled[size_t(j)] = std::max(pooled[size_t(j)], mean[c] / 2); });
      }
      std::vector<int64_t> order(vote.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return pooled[size_t(a)] > pooled[size_t(b)]; });
      order.resize(size_t(policy.budget - w));
      for (int64_t j = n - w; j < n; ++j) order.push_back(j);
      std::sort(order.begin(), order.end());
      want.push_back(order);
    }
    Compressor(policy, n - 4).run(*s.backend, s.cache, s.window, kHeads);
    // Random votes do not tie but through the pool, where both sides take the lower row.
    for (int64_t h = 0; h < kKvHeads; ++h) EXPECT_EQ(s.positions(1, h), want[size_t(h)]) << h;
  }
}

}  // namespace
}  // namespace ei::test
