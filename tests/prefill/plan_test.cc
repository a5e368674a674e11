#include "ei/prefill/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "ei/base/error.h"
#include "ei/cache/kv_cache.h"
#include "ei/cpu/backend.h"
#include "tests/policy/extremes.h"

namespace ei {
namespace {

constexpr int64_t kHeads = 6, kKvHeads = 3, kHeadDim = 16;

using Matrix = std::vector<float>;  // [n, heads * d]

struct Inputs {
  int64_t n = 0;
  Matrix q, k, v;
};

// Queries that want a changing number of earlier keys, so that entropy moves and differs by head: a
// slowly turning direction per head, keys that follow it with noise of a strength that comes and
// goes.
Inputs make_inputs(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Inputs in{n, Matrix(size_t(n * kHeads * kHeadDim)), Matrix(size_t(n * kKvHeads * kHeadDim)),
            Matrix(size_t(n * kKvHeads * kHeadDim))};
  std::vector<float> base(size_t(kKvHeads * kHeadDim));
  for (float& x : base) x = normal(random);
  for (int64_t i = 0; i < n; ++i) {
    const float wave = 1 + std::sin(float(i) / 90);
    for (int64_t h = 0; h < kKvHeads; ++h)
      for (int64_t j = 0; j < kHeadDim; ++j) {
        float& direction = base[size_t(h * kHeadDim + j)];
        direction = 0.999f * direction + 0.05f * normal(random);
        const auto at = size_t((i * kKvHeads + h) * kHeadDim + j);
        in.k[at] = direction + wave * normal(random);
        in.v[at] = normal(random);
        for (int64_t g = 0; g < kHeads / kKvHeads; ++g)
          in.q[size_t((i * kHeads + h * (kHeads / kKvHeads) + g) * kHeadDim + j)] =
              float(h + 1) * (direction + 0.5f * normal(random));
      }
  }
  return in;
}

PrefillPolicy small_policy() {
  PrefillPolicy policy;
  policy.segment = 64;
  policy.block = 8;
  policy.budget.base = 96;
  policy.threshold_len = 128;
  policy.dense_layers = 0;
  policy.dense_tail = 16;
  return policy;
}

PrefillPolicy small(PrefillPolicy policy, int64_t segment, int64_t block) {
  policy.segment = segment;
  policy.block = block;
  policy.threshold_len = 128;
  policy.dense_tail = 48;
  policy.sink = block;
  policy.local = 2 * block;
  return policy;
}

// One of every kind, none of which keeps everything of make_inputs().
std::vector<PrefillPolicy> small_policies() {
  std::vector<PrefillPolicy> all = {small_policy(), small(PrefillPolicy::sketch(), 16, 8),
                                    small(PrefillPolicy::xattention(), 32, 16),
                                    small(PrefillPolicy::flashprefill(), 32, 16)};
  all[1].mass = all[2].mass = 0.7f;
  return all;
}

struct Outputs {
  Matrix out;  // [n, heads * d]
  std::map<std::pair<int64_t, int64_t>, std::vector<int32_t>>
      selected;  // (head, segment) -> blocks
  PrefillStats stats;
};

// One layer of prefill attention under a policy, in chunks. `cached` > 0: the tokens before it were
// read under a shorter prompt of that many tokens.
class Reader {
 public:
  Reader(const PrefillPolicy& policy, int64_t max_tokens, int64_t chunk)
      : backend_(make_cpu_backend(2)),
        shape_{.n_layers = 1,
               .n_kv_heads = kKvHeads,
               .layout = {.dtype = DType::kF32,
                          .head_dim = kHeadDim,
                          .rows = page(policy),
                          .block = policy.is_dense() ? 0 : policy.block},
               .max_tokens = max_tokens},
        pool_(*backend_, shape_.layout.bytes()),
        cache_(*backend_, pool_, shape_),
        plan_(*backend_, policy,
              {.n_layers = 1,
               .n_heads = kHeads,
               .n_kv_heads = kKvHeads,
               .head_dim = kHeadDim,
               .max_tokens = max_tokens,
               .page = page(policy),
               .chunk = chunk}),
        sketch_(*backend_, {1, kKvHeads, kHeadDim}, directions()) {
    plan_.use(&sketch_);
  }

  // Whole segments, some 64 tokens.
  static int64_t page(const PrefillPolicy& policy) {
    return (63 + policy.segment) / policy.segment * policy.segment;
  }

  PrefillPlan& plan() { return plan_; }
  KvCache& cache() { return cache_; }

  Outputs read(Inputs& in) {
    Outputs outputs{Matrix(in.q.size(), NAN), {}, {}};
    const int64_t segment = plan_.policy().segment;
    plan_.begin(in.n, cache_.n_tokens());
    while (cache_.n_tokens() < in.n) {
      const Chunk chunk = plan_.next(cache_.n_tokens(), INT64_MAX);
      const auto rows = [&](Matrix& m, int64_t heads) {
        return Act{m.data() + chunk.begin * heads * kHeadDim, chunk.size, heads * kHeadDim, 4};
      };
      cache_.reserve(chunk.size);
      cache_.append(0, rows(in.k, kKvHeads), rows(in.v, kKvHeads));
      const Act q = rows(in.q, kHeads);
      const Selection seen = plan_.select(0, chunk, q, cache_.layer(0));
      for (int64_t h = 0; h < kKvHeads; ++h)
        for (int64_t s = 0; s < seen.count.dim(1); ++s)
          if (const int32_t count = seen.count[h][s]; count != kAllBlocks)
            outputs.selected[{h, chunk.begin / segment + s}] = {seen.index[h][s].data,
                                                                seen.index[h][s].data + count};
      backend_->run(SparseAttention{.q = q,
                                    .kv = cache_.layer(0),
                                    .begin = chunk.begin,
                                    .segment = segment,
                                    .block = plan_.policy().block,
                                    .selection = seen,
                                    .scale = 0.25f,
                                    .out = rows(outputs.out, kHeads)});
      cache_.advance(chunk.size);
    }
    outputs.stats = plan_.stats();
    return outputs;
  }

 private:
  std::unique_ptr<Backend> backend_;
  KvShape shape_;
  PagePool pool_;
  KvCache cache_;
  PrefillPlan plan_;
  Sketch sketch_;

  static std::vector<float> directions() {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal(0, 0.25f);
    std::vector<float> values(size_t(Sketch::Shape{1, kKvHeads, kHeadDim}.size()));
    for (float& x : values) x = normal(random);
    return values;
  }
};

Outputs read(Inputs in, const PrefillPolicy& policy, int64_t chunk = 128) {
  return Reader(policy, in.n, chunk).read(in);
}

double nmse(const Matrix& got, const Matrix& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(double(got[i]) - double(want[i]), 2);
    norm += std::pow(double(want[i]), 2);
  }
  return error / norm;  // NaN where something was not written: fails every comparison
}

// Whatever a setting may be, a prompt is read: nothing overflows (UBSan looks), no row is
// forgotten.
TEST(PlanTest, ReadsAtTheEndsOfAllRanges) {
  for (const PrefillPolicy& start : small_policies())
    for (const auto& [name, policy] : test::extremes(start)) {
      if (policy.segment % policy.block != 0) continue;
      if (policy.estimate == Estimate::kAntidiagonals && policy.block % policy.stride != 0)
        continue;
      SCOPED_TRACE(testing::Message() << int(start.estimate) << ", " << name);
      const Outputs got = read(make_inputs(330, 3), policy);
      EXPECT_TRUE(std::ranges::all_of(got.out, [](float x) { return std::isfinite(x); }));
      EXPECT_GT(got.stats.attended_pairs, 0);
      EXPECT_LE(got.stats.attended_pairs, got.stats.dense_pairs);
    }
}

TEST(PlanTest, EverythingSelectedIsDense) {
  for (const int64_t n : {129, 640, 1000}) {
    const Inputs in = make_inputs(n, 1);
    const Outputs dense = read(in, PrefillPolicy::dense());
    for (PrefillPolicy policy : small_policies()) {
      policy.budget.base = 4096;
      policy.mass = 1;
      policy.share = 0;
      const Outputs sparse = read(in, policy);
      // Only the order of float sums differs.
      EXPECT_LT(nmse(sparse.out, dense.out), 1e-10) << n << ", " << int(policy.estimate);
      EXPECT_DOUBLE_EQ(sparse.stats.attended_pairs, sparse.stats.dense_pairs);
    }
  }
}

TEST(PlanTest, ThresholdBeyondThePromptIsDenseExactly) {
  const Inputs in = make_inputs(700, 2);
  PrefillPolicy policy = small_policy(), dense = PrefillPolicy::dense();
  policy.threshold_len = 700;
  dense.segment = policy.segment;  // the same kernel over the same tiles
  dense.block = policy.block;
  EXPECT_EQ(read(in, policy).out, read(in, dense).out);
}

TEST(PlanTest, ChunkSizeChangesNothing) {
  const Inputs in = make_inputs(1100, 3);
  for (const PrefillPolicy& policy : small_policies()) {
    SCOPED_TRACE(int(policy.estimate));
    const Outputs want = read(in, policy, 4096);
    ASSERT_GT(want.selected.size(), 20u);
    ASSERT_LT(want.stats.attended_pairs, 0.9 * want.stats.dense_pairs);
    for (const int64_t chunk : {1, 64, 128, 320, 1024}) {
      const Outputs got = read(in, policy, chunk);
      EXPECT_EQ(got.selected, want.selected) << chunk;
      EXPECT_LT(nmse(got.out, want.out), 1e-12) << chunk;  // order of float sums
      EXPECT_DOUBLE_EQ(got.stats.attended_pairs, want.stats.attended_pairs) << chunk;
      EXPECT_EQ(got.stats.rigid_heads, want.stats.rigid_heads) << chunk;
    }
  }
}

TEST(PlanTest, SelectionsAreAscendingPastAndOfTheAllocatedSize) {
  const Inputs in = make_inputs(1100, 4);
  const PrefillPolicy policy = small_policy();
  const Outputs got = read(in, policy);
  bool budgets_differ = false;
  size_t first = 0;
  for (const auto& [where, blocks] : got.selected) {
    const int64_t past = where.second * policy.segment / policy.block;
    ASSERT_FALSE(blocks.empty());
    EXPECT_TRUE(std::is_sorted(blocks.begin(), blocks.end()));
    EXPECT_EQ(std::adjacent_find(blocks.begin(), blocks.end()), blocks.end());
    EXPECT_GE(blocks.front(), 0);
    EXPECT_LT(blocks.back(), past) << "segment " << where.second;
    EXPECT_GE(int64_t(blocks.size()), std::min<int64_t>(past, 96 / policy.block));
    EXPECT_LE(int64_t(blocks.size()), 3 * 96 / policy.block);
    if (first == 0) first = blocks.size();
    budgets_differ |= blocks.size() != first;
  }
  EXPECT_TRUE(budgets_differ);
  // Dense: the first two segments, and the tail. 1100 = 17 * 64 + 12: the last is short.
  for (const int64_t dense : {0, 1, 16, 17}) EXPECT_EQ(got.selected.count({0, dense}), 0u) << dense;
  for (const int64_t sparse : {2, 15}) EXPECT_EQ(got.selected.count({0, sparse}), 1u) << sparse;
}

TEST(PlanTest, PermutedHeadsPermuteSelections) {
  const Inputs in = make_inputs(900, 5);
  // KV head h of the permuted input is head (h + 1) % 3, with its query heads.
  Inputs permuted = in;
  const int64_t group = kHeads / kKvHeads;
  for (int64_t i = 0; i < in.n; ++i)
    for (int64_t h = 0; h < kKvHeads; ++h) {
      const int64_t from = (h + 1) % kKvHeads;
      const auto move = [&](const Matrix& a, Matrix& b, int64_t heads, int64_t width) {
        std::copy_n(a.begin() + (i * heads / width + from) * width * kHeadDim, width * kHeadDim,
                    b.begin() + (i * heads / width + h) * width * kHeadDim);
      };
      move(in.k, permuted.k, kKvHeads, 1);
      move(in.v, permuted.v, kKvHeads, 1);
      move(in.q, permuted.q, kHeads, group);
    }
  const Outputs a = read(in, small_policy()), b = read(permuted, small_policy());
  for (const auto& [where, blocks] : b.selected)
    EXPECT_EQ(blocks, a.selected.at({(where.first + 1) % kKvHeads, where.second}));
}

TEST(PlanTest, ScalingValuesScalesTheOutput) {
  Inputs in = make_inputs(800, 6);
  const Outputs one = read(in, small_policy());
  for (float& x : in.v) x *= 4;  // a power of two: exact
  const Outputs four = read(in, small_policy());
  EXPECT_EQ(one.selected, four.selected);
  for (size_t i = 0; i < one.out.size(); ++i) ASSERT_EQ(4 * one.out[i], four.out[i]) << i;
}

TEST(PlanTest, GoingOnFromACachedPrefixIsReadingAtOnce) {
  for (const PrefillPolicy& policy : small_policies())
    for (const int64_t turn : {200, 512, 700, 1000}) {
      SCOPED_TRACE(testing::Message() << int(policy.estimate) << ", " << turn);
      Inputs in = make_inputs(1100, 7);
      const Outputs want = read(in, policy);
      Inputs first = in;
      first.n = turn;
      Reader reader(policy, 1100, 128);
      reader.read(first);
      const int64_t reusable = reader.plan().reusable(turn);
      EXPECT_EQ(reusable % 64, 0);
      EXPECT_LT(reusable, turn);
      EXPECT_GE(reusable, turn - 128);
      reader.cache().truncate(reusable);
      const Outputs got = reader.read(in);
      for (const auto& [where, blocks] : got.selected) EXPECT_EQ(blocks, want.selected.at(where));
      const auto from = size_t(reusable * kHeads * kHeadDim);
      EXPECT_LT(nmse(Matrix(got.out.begin() + from, got.out.end()),
                     Matrix(want.out.begin() + from, want.out.end())),
                1e-12);
    }
}

TEST(PlanTest, SinkAndRecentBlocksAreKeptWithinTheBudget) {
  const Inputs in = make_inputs(900, 8);
  PrefillPolicy policy = small_policy();
  policy.sink = 2 * policy.block - 3;  // whole blocks are kept
  policy.local = 3 * policy.block;
  const Outputs plain = read(in, small_policy()), kept = read(in, policy);
  for (const auto& [where, blocks] : kept.selected) {
    const auto past = int32_t(where.second * policy.segment / policy.block);
    for (const int32_t b : {0, 1, past - 3, past - 2, past - 1})
      EXPECT_TRUE(std::binary_search(blocks.begin(), blocks.end(), b)) << b;
    EXPECT_EQ(blocks.size(), plain.selected.at(where).size());
  }
}

TEST(PlanTest, RefusesSettingsThatDoNotFit) {
  PrefillPolicy policy = small_policy();
  policy.block = 7;
  EXPECT_THROW(Reader(policy, 100, 64), Error);
  policy = small_policy();
  policy.budget.base = 4;  // less than a block
  EXPECT_THROW(Reader(policy, 100, 64), Error);
}

}  // namespace
}  // namespace ei
