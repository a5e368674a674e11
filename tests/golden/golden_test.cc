// Compares with outputs of the authors' released code (tests/golden/README.md) under the preset
// `reference`. Another folder of the same kind can be given in ENTROPYINFER_GOLDEN_DIR.
// On the CPU all stages in a chain, in float32 as the reference. Where numbers are rounded, in bf16
// by a GPU or in q8_0 in a cache of the CPU's, a chain would drift: there every stage begins from
// the reference's own numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>

#include "ei/cache/kv_cache.h"
#include "ei/cpu/backend.h"
#include "ei/decode/compress.h"
#include "ei/io/json.h"
#include "ei/io/safetensors.h"
#include "ei/prefill/plan.h"
#include "tests/support/backend_fixture.h"

namespace ei {
namespace {

std::filesystem::path golden_dir() {
  const char* dir = std::getenv("ENTROPYINFER_GOLDEN_DIR");
  return dir != nullptr ? dir : EI_SOURCE_DIR "/tests/golden";
}

class Golden {
 public:
  explicit Golden(const std::string& name)
      : settings(read_json(golden_dir() / "index.json").at(name)),
        n(integer("n")),
        heads(integer("heads")),
        kv_heads(integer("kv_heads")),
        d(integer("head_dim")),
        file_(golden_dir() / (name + ".safetensors")) {}

  template <class T>
  std::vector<T> get(const char* name) const {
    const TensorInfo& tensor = file_.tensors().at(name);
    EXPECT_EQ(tensor.dtype, (std::is_same_v<T, float> ? "F32" : "I32"));
    std::vector<T> values(tensor.data.size() / sizeof(T));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    return values;
  }
  int64_t integer(const char* key) const { return settings.at(key).get<int64_t>(); }

  const Json settings;
  const int64_t n, heads, kv_heads, d;

 private:
  SafetensorsFile file_;
};

template <class F>
void for_each_case(const std::string& kind, const F& check) {
  int n_cases = 0;
  const Json index = read_json(golden_dir() / "index.json");
  for (const auto& [name, settings] : index.items()) {
    if (!name.starts_with(kind)) continue;
    SCOPED_TRACE(name);
    check(Golden(name));
    ++n_cases;
  }
  EXPECT_GT(n_cases, 0);
}

// What only one of them has: `want`, and the n in `got`.
std::vector<int32_t> differing(const std::set<int32_t>& want, const int32_t* got, int64_t n) {
  const std::set<int32_t> selected(got, got + n);
  std::vector<int32_t> differ;
  std::set_symmetric_difference(want.begin(), want.end(), selected.begin(), selected.end(),
                                std::back_inserter(differ));
  return differ;
}

// A cache of one layer that holds k and v [n, kv_heads * d].
struct Cache {
  Cache(Backend& backend, const Act& k, const Act& v, int64_t d, int64_t page_rows, int64_t block,
        DType dtype = DType::kF32)
      : shape{.n_layers = 1,
              .n_kv_heads = k.cols / d,
              .layout = {.dtype = dtype, .head_dim = d, .rows = page_rows, .block = block},
              .max_tokens = k.rows},
        pool(backend, shape.layout.bytes()),
        cache(backend, pool, shape) {
    cache.reserve(k.rows);
    cache.append(0, k, v);
    cache.advance(k.rows);
  }
  KvShape shape;
  PagePool pool;
  KvCache cache;
};

PrefillPolicy prefill_policy(const Golden& golden) {
  PrefillPolicy policy = PrefillPolicy::reference();
  policy.dense_layers = 0;
  policy.segment = golden.integer("segment_size");
  policy.block = golden.integer("block_size");
  policy.threshold_len = golden.integer("threshold_len");
  policy.budget.base = float(golden.integer("base_budget"));
  policy.budget.e_t = golden.settings.at("e_t").get<float>();
  policy.budget.delta_t = golden.settings.at("delta_t").get<float>();
  policy.budget.alpha = golden.settings.at("alpha").get<float>();
  return policy;
}

Pooling pooling(const Golden& golden) {
  const std::string name = golden.settings.at("pooling");
  return name == "avgpool" ? Pooling::kAvg : name == "maxpool" ? Pooling::kMax : Pooling::kNone;
}

GroupReduce reduce(const Golden& golden) {
  return golden.settings.at("gqa_func") == "max" ? GroupReduce::kMax : GroupReduce::kMean;
}

void check_prefill(const Golden& golden) {
  const int64_t n = golden.n, heads = golden.heads, kv_heads = golden.kv_heads, d = golden.d;
  const PrefillPolicy policy = prefill_policy(golden);
  auto q = golden.get<float>("q"), k = golden.get<float>("k"), v = golden.get<float>("v");

  const auto backend = make_cpu_backend(2, Math::kF32);
  Cache cache(*backend, {k.data(), n, kv_heads * d, 4}, {v.data(), n, kv_heads * d, 4}, d,
              policy.segment, policy.block);
  const int64_t n_segments = (n + policy.segment - 1) / policy.segment;
  const int64_t n_blocks = (n_segments - 1) * policy.segment / policy.block;
  const Act queries = {q.data(), n, heads * d, 4};

  // Profile.
  const DeviceArray<float, 3> score(*backend, {kv_heads, n_segments, n_blocks});
  const DeviceArray<float, 3> entropy(*backend, {n_segments, 1, kv_heads});
  backend->run(ScoreBlocks{.q = queries,
                           .begin = 0,
                           .segment = policy.segment,
                           .kv = cache.cache.layer(0),
                           .score = score.view(),
                           .entropy = entropy.view()});
  const auto want_entropy = golden.get<float>("entropy");
  std::vector<bool> rigid(size_t(kv_heads), true);
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 1; s < n_segments; ++s) {
      const float want = want_entropy[size_t(h * n_segments + s)], got = entropy.view()[s][0][h];
      EXPECT_LE(std::abs(got - want), std::max(1e-5f, 1e-4f * want))
          << "head " << h << " segment " << s;
      if (got >= policy.budget.e_t) rigid[size_t(h)] = false;
    }
  for (int64_t h = 0; h < kv_heads; ++h)
    EXPECT_EQ(rigid[size_t(h)], golden.get<int32_t>("rigid")[size_t(h)] != 0) << "head " << h;

  // Allocate: every head's own budget, then the reference's maximum over heads.
  const DeviceArray<float, 2> tokens(*backend, {kv_heads, n_segments});
  const DeviceArray<int32_t, 2> blocks(*backend, {kv_heads, n_segments});
  AllocateBudget allocate = {.entropy = entropy.view(),
                             .first_segment = 0,
                             .segment = policy.segment,
                             .block = policy.block,
                             .rule = policy.budget,
                             .tokens = tokens.view(),
                             .blocks = blocks.view()};
  allocate.rule.max_over_heads = false;
  backend->run(allocate);
  const auto want_budget = golden.get<float>("budget");
  const auto want_count = golden.get<int32_t>("count");
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 1; s < n_segments; ++s) {
      const auto at = size_t(h * n_segments + s);
      EXPECT_NEAR(tokens.view()[h][s], want_budget[at], 1) << "head " << h << " segment " << s;
      EXPECT_EQ(blocks.view()[h][s], want_count[at]) << "head " << h << " segment " << s;
    }
  allocate.rule.max_over_heads = true;
  backend->run(allocate);
  const auto topk = golden.get<int32_t>("segment_topk");
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 1; s < n_segments; ++s)
      EXPECT_EQ(blocks.view()[h][s], topk[size_t(s)]) << "head " << h << " segment " << s;

  // Select and attend, as the prefill loop does.
  PrefillPlan plan(*backend, policy,
                   {.n_layers = 1,
                    .n_heads = heads,
                    .n_kv_heads = kv_heads,
                    .head_dim = d,
                    .max_tokens = n,
                    .page = policy.segment,
                    .chunk = policy.segment});
  plan.begin(n, 0);
  const Chunk chunk = plan.next(0, INT64_MAX);
  ASSERT_EQ(chunk.size, n);
  const Selection selection = plan.select(0, chunk, queries, cache.cache.layer(0));
  const auto order = golden.get<int32_t>("order");
  const auto prob = golden.get<float>("prob");
  const auto width = int64_t(order.size()) / (kv_heads * n_segments);
  const auto prob_width = int64_t(prob.size()) / (kv_heads * n_segments);
  int n_sparse = 0;
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 0; s < n_segments; ++s) {
      const bool sparse = s * policy.segment >= policy.threshold_len && s < n_segments - 1;
      const int32_t count = selection.count[h][s];
      ASSERT_EQ(count, sparse ? topk[size_t(s)] : kAllBlocks) << "head " << h << " segment " << s;
      if (!sparse) continue;
      ++n_sparse;
      const int32_t* ranked = order.data() + (h * n_segments + s) * width;
      const float* p = prob.data() + (h * n_segments + s) * prob_width;
      for (const int32_t b : differing({ranked, ranked + count}, selection.index[h][s].data, count))
        // log p is the score up to a constant
        EXPECT_LE(std::abs(std::log(p[b]) - std::log(p[ranked[count - 1]])), 1e-5)
            << "head " << h << " segment " << s << " block " << b;
    }
  EXPECT_GT(n_sparse, 0);

  std::vector<float> out(q.size(), NAN);
  backend->run(SparseAttention{.q = queries,
                               .kv = cache.cache.layer(0),
                               .begin = 0,
                               .segment = policy.segment,
                               .block = policy.block,
                               .selection = selection,
                               .scale = 1 / std::sqrt(float(d)),
                               .out = {out.data(), n, heads * d, 4}});
  EXPECT_LT(test::nmse(out, golden.get<float>("out")), 1e-6);
}

void check_compress(const Golden& golden) {
  const int64_t n = golden.n, heads = golden.heads, kv_heads = golden.kv_heads, d = golden.d;
  const int64_t budget = golden.integer("budget"), window = golden.integer("window");
  const bool per_kv_head = golden.settings.at("use_gqa").get<bool>();
  auto k = golden.get<float>("k"), v = golden.get<float>("v"), q = golden.get<float>("obs_q");

  const auto backend = make_cpu_backend(2, Math::kF32);
  Cache cache(*backend, {k.data(), n, kv_heads * d, 4}, {v.data(), n, kv_heads * d, 4}, d, 64, 0);
  const int64_t rows = per_kv_head ? kv_heads : heads, past = n - window;
  const DeviceArray<float, 2> votes(*backend, {rows, past}), pooled(*backend, {rows, past});
  const std::vector<int32_t> all_past(static_cast<size_t>(rows), static_cast<int32_t>(past));
  const DeviceArray<int32_t, 1> n_votes(*backend, all_past);
  backend->run(Vote{.window = {q.data(), window, heads * d, 4},
                    .first = 0,
                    .n_queries = window,
                    .kv = cache.cache.layer(0),
                    .scale = 1 / std::sqrt(float(d)),
                    .reduce = reduce(golden),
                    .votes = votes.view()});
  backend->run(PoolVotes{.votes = votes.view(),
                         .n_votes = n_votes.view(),
                         .pooling = pooling(golden),
                         .kernel = golden.integer("kernel"),
                         .out = pooled.view()});
  const auto want_score = golden.get<float>("score");
  const std::vector<float> got_score(pooled.view().begin(), pooled.view().end());
  EXPECT_LT(test::nmse(got_score, want_score), 1e-6);

  const DeviceArray<int32_t, 2> kept(*backend, {rows, budget});
  const DeviceArray<int32_t, 1> count(*backend, {rows});
  const Keep keep = {kept.view(), count.view()};
  backend->run(KeepTop{.votes = pooled.view(),
                       .n_votes = n_votes.view(),
                       .n_top = budget - window,
                       .window = window,
                       .out = keep});
  cache.cache.compact(0, keep, count.to_host(*backend));
  const KvLayer layer = cache.cache.layer(0);
  const auto index = golden.get<int32_t>("index");
  const auto k_out = golden.get<float>("k_out"), v_out = golden.get<float>("v_out");
  for (int64_t h = 0; h < rows; ++h) {
    ASSERT_EQ(count.view()[h], budget);
    ASSERT_EQ(layer.n_rows[h], budget);
    const int32_t* ranked = index.data() + h * (budget - window);
    const float* score = want_score.data() + h * past;
    const float cut = score[ranked[budget - window - 1]];
    for (int64_t r = 0; r < budget; ++r) {
      const int32_t row = keep.rows[h][r];
      // Where the reference kept this row: by rank, then the window in order.
      int64_t at = budget - window + row - past;
      if (row < past) at = std::find(ranked, ranked + budget - window, row) - ranked;
      if (row < past && at == budget - window) {
        EXPECT_NEAR(score[row], cut, 1e-5) << "head " << h << " row " << row;
        continue;
      }
      const auto* page = static_cast<const float*>(layer.pages[h][r / layer.layout.rows]);
      for (int64_t j = 0; j < d; ++j) {
        const auto want = size_t((at * rows + h) * d + j);
        EXPECT_EQ(page[r % layer.layout.rows * d + j], k_out[want]);
        EXPECT_EQ(page[(layer.layout.first_value() + r % layer.layout.rows) * d + j], v_out[want]);
      }
    }
  }
}

TEST(GoldenTest, Prefill) { for_each_case("prefill_", check_prefill); }
TEST(GoldenTest, Compress) { for_each_case("compress_", check_compress); }

class GoldenRoundedTest : public test::BackendTest {
 protected:
  test::DeviceAct rows(const std::vector<float>& values, int64_t n) {
    test::Matrix matrix({n, std::ssize(values) / n});
    matrix.v.assign(values.begin(), values.end());
    return act(matrix);
  }
  template <class T, int N>
  DeviceArray<T, N> array(const std::vector<T>& values, std::array<int64_t, N> dims) {
    test::Array<T, N> array(dims);
    EXPECT_EQ(array.v.size(), values.size());
    array.v = values;
    return upload<T>(array);
  }
  float rounding() { return kv_type() == DType::kQ8 ? 3 : 1; }  // against that to bf16
  DType kv_type() { return backend().act_bytes() == 4 ? DType::kQ8 : DType::kBF16; }
  void check_prefill(const Golden& golden);
  void check_compress(const Golden& golden);
};
std::vector<std::string> rounding_backends() {
  std::vector<std::string> names = test::gpu_names();
  names.push_back(test::backend_names().front());  // of the CPU
  return names;
}
INSTANTIATE_TEST_SUITE_P(On, GoldenRoundedTest, testing::ValuesIn(rounding_backends()),
                         test::backend_name);

// Queries, keys and values rounded to bf16 move scores by some hundredths: entropies are held to 2%
// or 0.05 nats and outputs to an NMSE of 1e-3, twice and three times what such rounding did to the
// case that it moved most. Keys and values in q8_0 are allowed three times as much, and moved the
// worst case by 0.08 nats and 2.4e-3. Budgets and selections must be the reference's.
void GoldenRoundedTest::check_prefill(const Golden& golden) {
  const PrefillPolicy policy = prefill_policy(golden);
  const int64_t n = golden.n, heads = golden.heads, kv_heads = golden.kv_heads, d = golden.d;
  const int64_t n_segments = (n + policy.segment - 1) / policy.segment;
  const int64_t n_blocks = (n_segments - 1) * policy.segment / policy.block;
  const test::DeviceAct q = rows(golden.get<float>("q"), n);
  Cache cache(backend(), rows(golden.get<float>("k"), n), rows(golden.get<float>("v"), n), d,
              policy.segment, policy.block, kv_type());

  const auto score = poisoned_array<float, 3>({kv_heads, n_segments, n_blocks});
  const auto entropy = poisoned_array<float, 3>({n_segments, 1, kv_heads});
  backend().run(ScoreBlocks{.q = q,
                            .begin = 0,
                            .segment = policy.segment,
                            .kv = cache.cache.layer(0),
                            .score = score.view(),
                            .entropy = entropy.view()});
  const auto want_entropy = golden.get<float>("entropy");
  const auto got_entropy = download(entropy);
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 1; s < n_segments; ++s) {
      const float want = want_entropy[size_t(h * n_segments + s)];
      EXPECT_NEAR(got_entropy[s][0][h], want, rounding() * std::max(0.05f, 0.02f * want))
          << "head " << h << " segment " << s;
    }

  const auto tokens = poisoned_array<float, 2>({kv_heads, n_segments});
  const auto blocks = poisoned_array<int32_t, 2>({kv_heads, n_segments});
  test::Array<float, 3> of_reference({n_segments, 1, kv_heads});
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 0; s < n_segments; ++s)
      of_reference[s][0][h] = want_entropy[size_t(h * n_segments + s)];
  const auto entropies = upload<float>(of_reference);
  AllocateBudget allocate = {.entropy = entropies.view(),
                             .first_segment = 0,
                             .segment = policy.segment,
                             .block = policy.block,
                             .rule = policy.budget,
                             .tokens = tokens.view(),
                             .blocks = blocks.view()};
  const auto topk = golden.get<int32_t>("segment_topk");
  for (const bool largest : {false, true}) {
    allocate.rule.max_over_heads = largest;
    backend().run(allocate);
    const auto want_budget = golden.get<float>("budget");
    const auto want_count = golden.get<int32_t>("count");
    const auto got_budget = download(tokens);
    const auto got_count = download(blocks);
    for (int64_t h = 0; h < kv_heads; ++h)
      for (int64_t s = 1; s < n_segments; ++s) {
        const auto at = size_t(h * n_segments + s);
        if (!largest) {
          EXPECT_NEAR(got_budget[h][s], want_budget[at], 1) << h << " " << s;
        }
        EXPECT_EQ(got_count[h][s], largest ? topk[size_t(s)] : want_count[at]) << h << " " << s;
      }
  }

  // The reference ranks by probability.
  const auto prob = golden.get<float>("prob");
  const auto order = golden.get<int32_t>("order");
  const auto width = int64_t(order.size()) / (kv_heads * n_segments);
  test::Array<int32_t, 2> wanted({kv_heads, n_segments}, kAllBlocks);
  int64_t most = 1;
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 0; s < n_segments - 1; ++s)
      if (s * policy.segment >= policy.threshold_len)
        most = std::max<int64_t>(most, wanted[h][s] = topk[size_t(s)]);
  EXPECT_GT(most, 1);
  const auto probs =
      array<float, 3>(prob, {kv_heads, n_segments, int64_t(prob.size()) / (kv_heads * n_segments)});
  const auto wanted_blocks = upload<int32_t>(wanted);
  const auto count = poisoned_array<int32_t, 2>({kv_heads, n_segments});
  const auto index = poisoned_array<int32_t, 3>({kv_heads, n_segments, most});
  const Selection selection = {count.view(), index.view()};
  backend().run(SelectBlocks{.score = probs.view(),
                             .blocks = wanted_blocks.view(),
                             .first_segment = 0,
                             .segment = policy.segment,
                             .block = policy.block,
                             .out = selection});
  const auto got_index = download(index);
  EXPECT_EQ(download(count).v, wanted.v);
  for (int64_t h = 0; h < kv_heads; ++h)
    for (int64_t s = 0; s < n_segments; ++s) {
      if (wanted[h][s] == kAllBlocks) continue;
      const int32_t* ranked = order.data() + (h * n_segments + s) * width;
      std::vector<int32_t> want(ranked, ranked + wanted[h][s]);
      std::sort(want.begin(), want.end());
      const int32_t* got = got_index[h][s].data;
      EXPECT_EQ(std::vector<int32_t>(got, got + wanted[h][s]), want) << h << " " << s;
    }

  const test::DeviceAct out = poisoned(n, heads * d);
  backend().run(SparseAttention{.q = q,
                                .kv = cache.cache.layer(0),
                                .begin = 0,
                                .segment = policy.segment,
                                .block = policy.block,
                                .selection = selection,
                                .scale = 1 / std::sqrt(float(d)),
                                .out = out});
  EXPECT_LT(test::nmse(out.values().v, golden.get<float>("out")), 1e-3 * rounding());
}

// Votes within an NMSE of 1e-4, for queries and keys rounded to bf16; what is kept exactly, but for
// votes within 1e-5 of the last one kept.
void GoldenRoundedTest::check_compress(const Golden& golden) {
  const int64_t n = golden.n, heads = golden.heads, kv_heads = golden.kv_heads, d = golden.d;
  const int64_t budget = golden.integer("budget"), window = golden.integer("window");
  const int64_t n_rows = golden.settings.at("use_gqa").get<bool>() ? kv_heads : heads;
  const int64_t past = n - window, n_top = budget - window;
  Cache cache(backend(), rows(golden.get<float>("k"), n), rows(golden.get<float>("v"), n), d, 64, 0,
              kv_type());

  const auto votes = poisoned_array<float, 2>({n_rows, past});
  const auto pooled = poisoned_array<float, 2>({n_rows, past});
  const auto n_votes = upload<int32_t>(test::Array<int32_t, 1>({n_rows}, int32_t(past)));
  backend().run(Vote{.window = rows(golden.get<float>("obs_q"), window),
                     .first = 0,
                     .n_queries = window,
                     .kv = cache.cache.layer(0),
                     .scale = 1 / std::sqrt(float(d)),
                     .reduce = reduce(golden),
                     .votes = votes.view()});
  backend().run(PoolVotes{.votes = votes.view(),
                          .n_votes = n_votes.view(),
                          .pooling = pooling(golden),
                          .kernel = golden.integer("kernel"),
                          .out = pooled.view()});
  const auto score = golden.get<float>("score");
  EXPECT_LT(test::nmse(download(pooled).v, score), 1e-4);

  const auto scores = array<float, 2>(score, {n_rows, past});
  const auto kept = poisoned_array<int32_t, 2>({n_rows, budget});
  const auto count = poisoned_array<int32_t, 1>({n_rows});
  backend().run(KeepTop{.votes = scores.view(),
                        .n_votes = n_votes.view(),
                        .n_top = n_top,
                        .window = window,
                        .out = {kept.view(), count.view()}});
  const auto got = download(kept);
  const auto index = golden.get<int32_t>("index");
  for (int64_t h = 0; h < n_rows; ++h) {
    const int32_t* ranked = index.data() + h * n_top;
    std::set<int32_t> want(ranked, ranked + n_top);
    for (int64_t i = 0; i < window; ++i) want.insert(int32_t(past + i));
    for (const int32_t row : differing(want, got[h].data, budget)) {
      ASSERT_LT(row, past) << "head " << h << " lacks a row of the window";
      EXPECT_NEAR(score[size_t(h * past + row)], score[size_t(h * past + ranked[n_top - 1])], 1e-5)
          << "head " << h << " row " << row;
    }
  }
  EXPECT_EQ(download(count).v, std::vector<int32_t>(size_t(n_rows), int32_t(budget)));
}

TEST_P(GoldenRoundedTest, Prefill) {
  for_each_case("prefill_", [this](const Golden& golden) { check_prefill(golden); });
}
TEST_P(GoldenRoundedTest, Compress) {
  for_each_case("compress_", [this](const Golden& golden) { check_compress(golden); });
}

}  // namespace
}  // namespace ei
