#include "ei/ops/vote.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ref/ref.h"
#include "tests/support/device_kv.h"

namespace ei::test {
namespace {

class VoteTest : public BackendTest {
 protected:
  struct Case {
    std::vector<int64_t> rows;  // of every KV head
    int64_t group, d, ring, w, first;
  };
  // Variants: mean and maximum of a group, votes of every query head, the highest of all queries;
  // the last two with weights.
  void expect_reference(const Case& c, DType dtype, int variant) {
    SCOPED_TRACE(testing::Message() << c.rows.size() << " x " << c.group << " heads, d " << c.d
                                    << ", window " << c.w << ", variant " << variant);
    const bool per_head = variant == 2 || variant == 4, weighted = variant > 3;
    const auto reduce = variant % 2 == 1 ? GroupReduce::kMax : GroupReduce::kMean;
    const auto over_queries = variant == 3 || variant == 5 ? GroupReduce::kMax : GroupReduce::kMean;
    DeviceKv cache(backend(), {dtype, c.d, 32, *std::max_element(c.rows.begin(), c.rows.end())},
                   random_heads(c.rows, c.d, 1, dtype == DType::kFP8));
    const int64_t kv_heads = std::ssize(c.rows), n_heads = kv_heads * c.group;
    const DeviceAct ring = act(normal<2>({c.ring, n_heads * c.d}, 2, 2), 1);
    const KvLayer kv = cache.layer();
    const auto votes =
        poisoned_array<float, 2>({per_head ? n_heads : kv_heads, kv.rows_bound - c.w + 3});
    const auto scale = float(1 / std::sqrt(double(c.d)));
    const auto magnitudes = [](auto array) {
      for (double& x : array.v) x = double(float(std::abs(x)));
      return array;
    };
    const auto query_weights = magnitudes(normal<1>({c.w}, 3));
    const Matrix row_weights = magnitudes(normal<2>({n_heads, kv.rows_bound - c.w + 1}, 4));
    const auto of_queries = upload<float>(query_weights);
    const auto of_rows = upload<float>(row_weights);
    backend().run(Vote{.window = ring,
                       .first = c.first,
                       .n_queries = c.w,
                       .kv = kv,
                       .scale = scale,
                       .reduce = reduce,
                       .over_queries = over_queries,
                       .query_weights = weighted ? of_queries.view() : View<float, 1>(),
                       .row_weights = weighted ? of_rows.view() : View<float, 2>(),
                       .votes = votes.view()});
    const auto got = download(votes);
    const auto heads = cache.heads();
    const Matrix window = ring.values();
    for (int64_t k = 0; k < kv_heads; ++k) {
      std::vector<std::vector<double>> per_query_head;
      for (int64_t h = k * c.group; h < (k + 1) * c.group; ++h) {
        Matrix queries({c.w, c.d});
        for (int64_t i = 0; i < c.w; ++i)
          std::copy_n(window[(c.first + i) % c.ring].data + h * c.d, c.d, queries[i].data);
        const auto row = row_weights[h];
        per_query_head.push_back(
            weighted ? ref::vote(queries, heads[size_t(k)].k, scale, over_queries, query_weights.v,
                                 {row.data, row.data + row_weights.dim(1)})
                     : ref::vote(queries, heads[size_t(k)].k, scale, over_queries));
      }
      const int64_t n = c.rows[size_t(k)] - c.w;
      for (int64_t g = 0; g < (per_head ? c.group : 1); ++g) {
        const auto row = got[per_head ? k * c.group + g : k];
        const std::vector<float> values(row.data, row.data + n);
        EXPECT_LE(nmse(values,
                       per_head ? per_query_head[size_t(g)] : ref::reduce(per_query_head, reduce)),
                  1e-8);
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(On, VoteTest, testing::ValuesIn(backend_names(/*tiles=*/true)),
                         backend_name);

TEST_P(VoteTest, MatchesReference) {
  for (const Case& c : {Case{{2}, 1, 16, 1, 1, 0},
                        {{40, 33}, 4, 64, 32, 32, 7},
                        {{65, 700}, 7, 64, 33, 32, 20},
                        {{1100, 129, 513}, 2, 80, 16, 8, 15},
                        {{300}, 3, 128, 64, 64, 1},
                        {{500}, 4, 17, 5, 5, 2}})
    for (const DType dtype : kv_types(c.d))
      for (const int variant : {0, 1, 2, 3, 4, 5})
        if (variant < 3 || backend().act_bytes() == sizeof(float))  // the CPU alone
          expect_reference(c, dtype, variant);
}

// More rows than all multiprocessors take at a time.
class LongVoteTest : public VoteTest {};
EI_GPU_TEST(LongVoteTest);

TEST_P(LongVoteTest, MatchesReference) {
  for (const int variant : {0, 1, 2})
    expect_reference({{34500}, 2, 128, 8, 4, 3}, DType::kBF16, variant);
}

TEST_P(VoteTest, ThreadsDoNotChangeTheResult) {
  DeviceKv cache(backend(), {DType::kBF16, 64, 512, 3000}, random_heads({3000, 1777}, 64, 1));
  const DeviceAct ring = act(normal<2>({32, 8 * 64}, 2));
  std::vector<std::vector<float>> results;
  for (const int n_threads : {1, 2, 5}) {
    const auto votes = upload<float>(Array<float, 2>({2, 3000}, 0.0f));
    make_backend(n_threads)->run(Vote{.window = ring,
                                      .first = 3,
                                      .n_queries = 32,
                                      .kv = cache.layer(),
                                      .scale = 0.125f,
                                      .votes = votes.view()});
    results.push_back(download(votes).v);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_P(VoteTest, RejectsAWindowLargerThanTheRing) {
  DeviceKv cache(backend(), {DType::kF32, 16, 8, 64}, random_heads({64}, 16, 1));
  const auto votes = poisoned_array<float, 2>({1, 64});
  EXPECT_THROW(
      backend().run(Vote{
          .window = poisoned(4, 16), .n_queries = 5, .kv = cache.layer(), .votes = votes.view()}),
      Error);
}

// As if there were none.
TEST_P(VoteTest, WeightsOfOneChangeNothing) {
  if (backend().act_bytes() != 4) GTEST_SKIP() << "on the CPU alone";
  DeviceKv cache(backend(), {DType::kBF16, 64, 512, 300}, random_heads({300, 177}, 64, 1));
  const DeviceAct ring = act(normal<2>({32, 4 * 64}, 2));
  const auto query_weights = upload<float>(Array<float, 1>({32}, 1.0f));
  const auto row_weights = upload<float>(Array<float, 2>({4, 300}, 1.0f));
  std::vector<std::vector<float>> results;
  for (const bool weighted : {false, true}) {
    const auto votes = upload<float>(Array<float, 2>({2, 300}, 0.0f));
    backend().run(Vote{.window = ring,
                       .n_queries = 32,
                       .kv = cache.layer(),
                       .scale = 0.125f,
                       .reduce = GroupReduce::kMax,
                       .over_queries = GroupReduce::kMax,
                       .query_weights = weighted ? query_weights.view() : View<float, 1>(),
                       .row_weights = weighted ? row_weights.view() : View<float, 2>(),
                       .votes = votes.view()});
    results.push_back(download(votes).v);
  }
  EXPECT_EQ(results[0], results[1]);
}

EI_BACKEND_TEST(ValueNormsTest);

TEST_P(ValueNormsTest, MatchesReference) {
  if (backend().act_bytes() != 4) GTEST_SKIP() << "on the CPU alone";
  struct Case {
    std::vector<int64_t> rows;  // of every KV head
    int64_t group, d, outputs;
  };
  for (const Case& c : {Case{{1}, 1, 16, 5},  // fewer outputs than numbers: some values vanish
                        {{140, 129}, 3, 64, 100},
                        {{128, 700}, 2, 80, 96},
                        {{300}, 1, 192, 512}})
    for (const DType dtype : kv_types(c.d)) {
      SCOPED_TRACE(testing::Message() << c.rows.size() << " x " << c.group << ", d " << c.d);
      DeviceKv cache(backend(), {dtype, c.d, 32, 1200}, random_heads(c.rows, c.d, 1));
      const int64_t n_heads = std::ssize(c.rows) * c.group;
      std::vector<Matrix> matrices;  // [outputs, d]
      Array<double, 3> gram({n_heads, c.d, c.d}, 0.0);
      for (int64_t h = 0; h < n_heads; ++h) {
        const Matrix w = normal<2>({c.outputs, c.d}, 2 + uint64_t(h));
        for (int64_t o = 0; o < c.outputs; ++o)
          for (int64_t i = 0; i < c.d; ++i)
            for (int64_t j = 0; j < c.d; ++j) gram[h][i][j] += w[o][i] * w[o][j];
        matrices.push_back(w);
      }
      const auto of_heads = upload<float>(gram);
      const auto norms = poisoned_array<float, 2>({n_heads, cache.layer().rows_bound + 1});
      backend().run(
          ValueNorms{.gram = of_heads.view(), .kv = cache.layer(), .norms = norms.view()});
      const auto got = download(norms);
      const auto heads = cache.heads();
      for (int64_t h = 0; h < n_heads; ++h) {
        const Matrix& v = heads[size_t(h / c.group)].v;
        std::vector<double> want;
        for (int64_t j = 0; j < v.dim(0); ++j) {
          double square = 0;
          for (int64_t o = 0; o < c.outputs; ++o)
            square += std::pow(
                std::inner_product(v[j].data, v[j].data + c.d, matrices[size_t(h)][o].data, 0.0),
                2);
          want.push_back(std::sqrt(square));
        }
        const auto row = got[h];
        const std::vector<float> values(row.data, row.data + v.dim(0));
        EXPECT_LE(nmse(values, want), 1e-8);
      }
    }
}

TEST_P(ValueNormsTest, RejectsAMatrixForEveryKvHead) {
  DeviceKv cache(backend(), {DType::kF32, 16, 8, 64}, random_heads({64, 64}, 16, 1));
  const auto gram = poisoned_array<float, 3>({2, 16, 16});
  const auto norms = poisoned_array<float, 2>({4, 64});
  EXPECT_THROW(
      backend().run(ValueNorms{.gram = gram.view(), .kv = cache.layer(), .norms = norms.view()}),
      Error);
}

EI_BACKEND_TEST(ExpectVotesTest);

TEST_P(ExpectVotesTest, MatchesReference) {
  struct Case {
    std::vector<int64_t> rows;  // of every KV head
    int64_t group, d, sinks;
  };
  for (const Case& c : {Case{{5}, 1, 16, 4},
                        {{3}, 2, 8, 4},  // sinks alone
                        {{140, 129}, 3, 64, 4},
                        {{128, 700}, 2, 80, 0},
                        {{300}, 1, 192, 4}})
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(testing::Message() << c.rows.size() << " x " << c.group << ", d " << c.d);
      if (backend().act_bytes() != 4) GTEST_SKIP() << "on the CPU alone";
      DeviceKv cache(backend(), {dtype, c.d, 32, 1200}, random_heads(c.rows, c.d, 1));
      const int64_t n_heads = std::ssize(c.rows) * c.group;
      const Matrix mean = normal<2>({n_heads, c.d}, 2);
      Array<double, 3> covariance({n_heads, c.d, c.d});
      for (int64_t h = 0; h < n_heads; ++h) {
        const Matrix a = normal<2>({c.d, c.d}, 3 + uint64_t(h), 0.5);
        for (int64_t i = 0; i < c.d; ++i)
          for (int64_t j = 0; j < c.d; ++j)
            covariance[h][i][j] =
                float(std::inner_product(a[i].data, a[i].data + c.d, a[j].data, 0.0));
      }
      const auto scale = float(1 / std::sqrt(double(c.d)));
      const auto votes =
          poisoned_array<float, 2>({std::ssize(c.rows), cache.layer().rows_bound + 2});
      const auto means = upload<float>(mean);
      const auto covariances = upload<float>(covariance);
      backend().run(ExpectVotes{.mean = means.view(),
                                .covariance = covariances.view(),
                                .kv = cache.layer(),
                                .scale = scale,
                                .sinks = c.sinks,
                                .votes = votes.view()});
      const auto got = download(votes);
      const auto heads = cache.heads();
      for (int64_t k = 0; k < std::ssize(c.rows); ++k) {
        Matrix of_group({c.group, c.d});
        std::vector<Matrix> matrices(size_t(c.group), Matrix({c.d, c.d}));
        for (int64_t g = 0; g < c.group; ++g) {
          std::copy_n(mean[k * c.group + g].data, c.d, of_group[g].data);
          std::copy_n(covariance[k * c.group + g].data, c.d * c.d, matrices[size_t(g)].v.data());
        }
        const auto row = got[k];
        const std::vector<float> values(row.data, row.data + c.rows[size_t(k)]);
        // Logits of some hundred, whose float products are off by 1e-5 of them.
        EXPECT_LE(nmse(values, ref::expect_votes(of_group, matrices, heads[size_t(k)].k,
                                                 heads[size_t(k)].v, scale, c.sinks)),
                  1e-6);
      }
    }
}

EI_BACKEND_TEST(PoolVotesTest);

TEST_P(PoolVotesTest, MatchesReference) {
  Array<int32_t, 1> n_votes({4});
  n_votes.v = {0, 1, 10, 1031};
  for (const Pooling pooling : {Pooling::kNone, Pooling::kAvg, Pooling::kMax, Pooling::kBoth})
    for (const int64_t kernel : {1, 5, 21, 101}) {
      SCOPED_TRACE(testing::Message() << "pooling " << int(pooling) << " kernel " << kernel);
      const Matrix votes = normal<2>({4, 1031}, 1);
      const auto from = upload<float>(votes);
      const auto n = upload<int32_t>(n_votes);
      const auto out = poisoned_array<float, 2>({4, 1031});
      backend().run(PoolVotes{.votes = from.view(),
                              .n_votes = n.view(),
                              .pooling = pooling,
                              .kernel = kernel,
                              .out = out.view()});
      const auto got = download(out);
      for (int64_t h = 0; h < 4; ++h) {
        const auto row = votes[h];
        const std::vector<double> valid(row.data, row.data + n_votes[h]);
        const auto pooled = got[h];
        const std::vector<float> values(pooled.data, pooled.data + n_votes[h]);
        EXPECT_LE(nmse(values, ref::pool(valid, pooling, kernel)), 1e-10);
      }
    }
}

TEST_P(PoolVotesTest, RejectsAnEvenKernel) {
  const auto votes = poisoned_array<float, 2>({1, 8}), out = poisoned_array<float, 2>({1, 8});
  const auto n = upload<int32_t>(Array<int32_t, 1>({1}, 8));
  EXPECT_THROW(backend().run(PoolVotes{
                   .votes = votes.view(), .n_votes = n.view(), .kernel = 4, .out = out.view()}),
               Error);
}

}  // namespace
}  // namespace ei::test
