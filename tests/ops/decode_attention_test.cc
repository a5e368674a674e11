#include "ei/ops/decode_attention.h"

#include <numeric>

#include "tests/ref/ref.h"
#include "tests/support/device_kv.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(DecodeAttentionTest);

struct Sequence {
  std::vector<int64_t> rows;  // of every KV head
};

TEST_P(DecodeAttentionTest, MatchesReference) {
  struct Case {
    int64_t n_heads, d;
    std::vector<Sequence> sequences;
  };
  for (const Case& c :
       {Case{1, 16, {{{1}}}}, Case{4, 64, {{{7, 8}}}}, Case{7, 64, {{{129}}}},
        Case{8, 80, {{{31, 33}}, {{1, 64}}}},
        Case{4, 128, {{{513, 2000}}, {{100, 3, 257, 1024}}}},  // KV heads of its own per query head
        Case{14, 64, {{{1500, 63}}, {{3, 3}}, {{900, 4097}}}}, Case{3, 34, {{{70}}}},
        Case{2, 17, {{{300}}}}, Case{5, 64, {{{127}}, {{511}}}}, Case{6, 32, {{{128}}, {{512}}}},
        Case{9, 40, {{{1023}}, {{1025}}}}, Case{2, 96, {{{2, 5}}, {{9, 4}}}},
        Case{3, 64, {{{9001}}}}})  // in more parts than a warp has lanes
    for (const DType dtype : kv_types(c.d))
      for (const int64_t page_rows : {8, 512}) {
        SCOPED_TRACE(testing::Message()
                     << c.n_heads << " heads, d " << c.d << ", " << c.sequences.size()
                     << " sequences " << dtype_name(dtype) << ", pages of " << page_rows);
        std::vector<DeviceKv> caches;
        std::vector<KvLayer> kv;
        for (const Sequence& s : c.sequences) {
          caches.emplace_back(backend(), DeviceKv::Shape{dtype, c.d, page_rows, 9001},
                              random_heads(s.rows, c.d, caches.size() + 1, dtype == DType::kFP8));
          kv.push_back(caches.back().layer());
        }
        const int64_t n = std::ssize(kv);
        const DeviceAct q = act(normal<2>({n, c.n_heads * c.d}, 9, 2), 1);
        const DeviceAct out = poisoned(n, c.n_heads * c.d, 3);
        const auto scale = float(1 / std::sqrt(double(c.d)));
        backend().run(DecodeAttention{.q = q, .kv = kv, .scale = scale, .out = out});
        const Matrix queries = q.values();
        std::vector<double> want;
        for (int64_t i = 0; i < n; ++i) {
          const auto heads = caches[size_t(i)].heads();
          for (int64_t h = 0; h < c.n_heads; ++h) {
            const HostKv& head = heads[size_t(h * std::ssize(heads) / c.n_heads)];
            ref::Rows rows(size_t(head.k.dim(0)), 0);
            std::iota(rows.begin(), rows.end(), 0);
            const auto row = ref::attend(queries[i].data + h * c.d, head.k, head.v, rows, scale);
            want.insert(want.end(), row.begin(), row.end());
          }
        }
        EXPECT_LE(nmse(out.values().v, want), tolerance(1e-8));
      }
}

TEST_P(DecodeAttentionTest, NoSequences) {
  backend().run(DecodeAttention{.q = poisoned(0, 64), .kv = {}, .out = poisoned(0, 64)});
}

TEST_P(DecodeAttentionTest, ThreadsDoNotChangeTheResult) {
  DeviceKv cache(backend(), {DType::kBF16, 64, 512, 3000}, random_heads({3000, 77}, 64, 1));
  const KvLayer kv = cache.layer();
  const DeviceAct q = act(normal<2>({1, 8 * 64}, 9));
  std::vector<std::vector<double>> results;
  for (const int n_threads : {1, 2, 7}) {
    const DeviceAct out = poisoned(1, 8 * 64);
    make_backend(n_threads)->run(
        DecodeAttention{.q = q, .kv = {&kv, 1}, .scale = 0.125f, .out = out});
    results.push_back(out.values().v);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_P(DecodeAttentionTest, RejectsAQueryWithoutCache) {
  EXPECT_THROW(
      backend().run(DecodeAttention{.q = poisoned(1, 64), .kv = {}, .out = poisoned(1, 64)}),
      Error);
}

}  // namespace
}  // namespace ei::test
