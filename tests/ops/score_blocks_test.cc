#include "ei/ops/score_blocks.h"

#include "tests/ref/ref.h"
#include "tests/support/device_kv.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(ScoreBlocksTest);

struct ScoreCase {
  int64_t n, begin, segment, block, kv_heads, group, d;
};

// Boxes of random width: with one constant width, a kernel that ignored k_min would pass.
std::vector<ref::Bounds> random_bounds(int64_t heads, int64_t blocks, int64_t d, uint64_t seed,
                                       DType dtype) {
  std::vector<ref::Bounds> bounds;
  for (int64_t h = 0; h < heads; ++h) {
    ref::Bounds b{normal<2>({blocks, d}, seed + uint64_t(h)),
                  normal<2>({blocks, d}, seed + 100 + uint64_t(h))};
    for (size_t i = 0; i < b.min.v.size(); ++i) {
      b.max.v[i] = round_to(dtype, b.min.v[i] + std::abs(b.max.v[i]));
      b.min.v[i] = round_to(dtype, b.min.v[i]);
    }
    bounds.push_back(b);
  }
  return bounds;
}

// A cache of nothing but bounds: a kernel that looked at keys would find NaN.
DeviceKv cache_of(Backend& backend, const std::vector<ref::Bounds>& bounds, DType dtype,
                  int64_t page_rows, int64_t block) {
  const int64_t n = bounds[0].min.dim(0) * block, d = bounds[0].min.dim(1);
  std::vector<HostKv> heads;
  for (const ref::Bounds& b : bounds)
    heads.push_back({Matrix({0, d}), Matrix({0, d}), b.min, b.max});
  DeviceKv cache(backend, {dtype, d, page_rows, n, block}, heads);
  cache.expect_rows(n);
  return cache;
}

TEST_P(ScoreBlocksTest, MatchesReference) {
  for (const ScoreCase& c : {ScoreCase{1, 0, 8, 8, 1, 1, 16},  // the first segment: no past
                             {8, 8, 8, 8, 1, 4, 64},           // one block
                             {37, 0, 16, 8, 2, 1, 80},         // the last segment short
                             {40, 32, 16, 4, 2, 7, 64},        // later chunk, group of seven
                             {129, 512, 64, 8, 1, 4, 128},     // the last segment a single query
                             {96, 96, 32, 2, 3, 2, 17},        // d that fits no vector
                             {40, 1024, 8, 8, 1, 25, 40},      // blocks that just fill tiles
                             {200, 5000, 100, 5, 1, 3, 33},    // blocks past every tile
                             {20, 2240, 8, 1, 16, 1, 72}})  // more tiles than a GPU takes at once
    for (const DType dtype : kv_types(c.d)) {
      // Pages of one segment and of several.
      const int64_t page_rows = dtype == DType::kF32 ? c.segment : 3 * c.segment;
      const float scale = dtype == DType::kF32 ? 1.0f : 0.125f;
      SCOPED_TRACE(testing::Message() << c.n << " queries from " << c.begin << ", group " << c.group
                                      << ", d " << c.d << ", " << dtype_name(dtype));
      const int64_t first = c.begin / c.segment;
      const int64_t n_segments = (c.n + c.segment - 1) / c.segment;
      const int64_t past = (first + n_segments - 1) * c.segment / c.block;
      const DeviceAct q = act(normal<2>({c.n, c.kv_heads * c.group * c.d}, 1, 0.3, 0.1), 1);
      const auto bounds =
          random_bounds(c.kv_heads, past + 3, c.d, 2, PageLayout{.dtype = dtype}.bound_dtype());
      const ref::Scores want =
          ref::score_blocks(q.values(), c.begin, c.segment, scale, bounds, c.block);
      const DeviceKv cache = cache_of(backend(), bounds, dtype, page_rows, c.block);
      const auto score = poisoned_array<float, 3>({c.kv_heads, n_segments, past + 2});
      const auto entropy = poisoned_array<float, 3>({first + n_segments + 1, 3, c.kv_heads});
      backend().run(ScoreBlocks{.q = q,
                                .begin = c.begin,
                                .segment = c.segment,
                                .scale = scale,
                                .kv = cache.layer(),
                                .score = score.view(),
                                .entropy = entropy.view(),
                                .layer = 1});
      const auto got = download(score);
      const auto got_entropy = download(entropy);
      std::vector<double> flat, want_flat;
      for (int64_t h = 0; h < c.kv_heads; ++h)
        for (int64_t s = 0; s < n_segments; ++s) {
          const int64_t n_past = (first + s) * c.segment / c.block;
          for (int64_t b = 0; b < n_past; ++b) {
            flat.push_back(got[h][s][b]);
            want_flat.push_back(want.score[h][s][b]);
          }
          const double e = want.entropy[h][s];
          EXPECT_NEAR(got_entropy[first + s][1][h], e, std::max(1e-4 * e, 1e-5)) << h << " " << s;
        }
      EXPECT_LE(nmse(flat, want_flat), 1e-9);
      // Nothing of other segments and layers is touched.
      const auto n_written = std::ranges::count_if(got_entropy.v, [](float e) { return e == e; });
      EXPECT_EQ(n_written, n_segments * c.kv_heads);
    }
}

TEST_P(ScoreBlocksTest, EntropySpansZeroToLogN) {
  const int64_t n_blocks = 64, d = 16;
  const DeviceAct q = act(normal<2>({8, d}, 1));
  const auto entropy_of = [&](const Matrix& box) {
    const DeviceKv cache = cache_of(backend(), {{box, box}}, DType::kF32, 8, 8);
    const auto score = poisoned_array<float, 3>({1, 1, n_blocks});
    const auto entropy = poisoned_array<float, 3>({65, 1, 1});
    backend().run(ScoreBlocks{.q = q,
                              .begin = 512,
                              .segment = 8,
                              .kv = cache.layer(),
                              .score = score.view(),
                              .entropy = entropy.view()});
    return download(entropy)[64][0][0];
  };
  Matrix box({n_blocks, d}, 0.0);
  EXPECT_NEAR(entropy_of(box), std::log(64.0), 1e-5);  // no block stands out
  for (int64_t c = 0; c < d; ++c) {
    double low = INFINITY, high = -INFINITY;
    for (int64_t r = 0; r < 8; ++r) {
      low = std::min(low, q.values()[r][c]);
      high = std::max(high, q.values()[r][c]);
    }
    box[5][c] = 1e3 * (low + high);
  }
  EXPECT_NEAR(entropy_of(box), 0, 1e-5);  // block 5 does
}

TEST_P(ScoreBlocksTest, ThreadsDoNotChangeTheResult) {
  const DeviceAct q = act(normal<2>({100, 4 * 64}, 1));
  const auto bounds = random_bounds(2, 80, 64, 2, DType::kBF16);
  const DeviceKv cache = cache_of(backend(), bounds, DType::kBF16, 32, 8);
  std::vector<std::vector<float>> results;
  for (const int n_threads : {1, 2, 3}) {
    const auto score = upload<float>(Array<float, 3>({2, 4, 76}, 0.0f));
    const auto entropy = upload<float>(Array<float, 3>({20, 1, 2}, 0.0f));
    make_backend(n_threads)->run(ScoreBlocks{.q = q,
                                             .begin = 512,
                                             .segment = 32,
                                             .kv = cache.layer(),
                                             .score = score.view(),
                                             .entropy = entropy.view()});
    results.push_back(download(score).v);
    const auto e = download(entropy).v;
    results.back().insert(results.back().end(), e.begin(), e.end());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_P(ScoreBlocksTest, RejectsMissingBounds) {
  const auto score = poisoned_array<float, 3>({1, 1, 64});
  const auto entropy = poisoned_array<float, 3>({65, 1, 1});
  const auto run = [&](int64_t n_blocks, int64_t block) {
    DeviceKv cache(backend(), {DType::kF32, 16, 8, 512, block}, random_heads({0}, 16, 1));
    cache.expect_rows(8 * n_blocks);
    backend().run(ScoreBlocks{.q = poisoned(8, 16),
                              .begin = 512,
                              .segment = 8,
                              .kv = cache.layer(),
                              .score = score.view(),
                              .entropy = entropy.view()});
  };
  EXPECT_NO_THROW(run(64, 8));
  EXPECT_THROW(run(63, 8), Error);  // fewer blocks than the segment has behind it
  EXPECT_THROW(run(64, 0), Error);  // pages without bounds
}

}  // namespace
}  // namespace ei::test
