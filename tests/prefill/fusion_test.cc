// CritiPrefill's layer fusion: blocks are ranked by probabilities mixed with those of the layer
// before.
#include <gtest/gtest.h>

#include <map>

#include "ei/cache/kv_cache.h"
#include "ei/cpu/backend.h"
#include "ei/prefill/plan.h"
#include "tests/ref/ref.h"

namespace ei::test {
namespace {

constexpr int64_t kHeads = 4, kKvHeads = 2, kHeadDim = 16, kLayers = 5, kTokens = 700;

struct Layer {
  Matrix q, k;
};

// Few blocks stand out, other ones in every layer: the mixture decides.
std::vector<Layer> make_layers() {
  std::vector<Layer> layers;
  for (uint64_t l = 0; l < kLayers; ++l)
    layers.push_back({normal<2>({kTokens, kHeads * kHeadDim}, 10 + l),
                      normal<2>({kTokens, kKvHeads * kHeadDim}, 20 + l)});
  return layers;
}

PrefillPolicy small_criti() {
  PrefillPolicy policy = PrefillPolicy::criti();
  policy.segment = 64;
  policy.block = 16;
  policy.budget.base = 96;
  policy.threshold_len = 128;
  policy.dense_tail = 0;
  return policy;
}

using Selected = std::map<std::array<int64_t, 3>, ref::Rows>;  // layer, head, segment

Selected select(const std::vector<Layer>& layers, const PrefillPolicy& policy, int64_t chunk_size) {
  const auto backend = make_cpu_backend(2);
  const KvShape shape{.n_layers = kLayers,
                      .n_kv_heads = kKvHeads,
                      .layout = {.dtype = DType::kF32,
                                 .head_dim = kHeadDim,
                                 .rows = policy.segment,
                                 .block = policy.block},
                      .max_tokens = kTokens};
  PagePool pool(*backend, shape.layout.bytes());
  KvCache cache(*backend, pool, shape);
  PrefillPlan plan(*backend, policy,
                   {.n_layers = kLayers,
                    .n_heads = kHeads,
                    .n_kv_heads = kKvHeads,
                    .head_dim = kHeadDim,
                    .max_tokens = kTokens,
                    .page = policy.segment,
                    .chunk = chunk_size});
  Selected out;
  plan.begin(kTokens, 0);
  while (cache.n_tokens() < kTokens) {
    const Chunk chunk = plan.next(cache.n_tokens(), INT64_MAX);
    cache.reserve(chunk.size);
    for (int l = 0; l < kLayers; ++l) {
      const auto rows = [&](const Matrix& m) {
        return std::vector<float>(m[chunk.begin].data, m[chunk.begin].data + chunk.size * m.dim(1));
      };
      auto q = rows(layers[size_t(l)].q), k = rows(layers[size_t(l)].k);
      const Act keys = {k.data(), chunk.size, kKvHeads * kHeadDim, 4};
      cache.append(l, keys, keys);
      const Selection seen =
          plan.select(l, chunk, {q.data(), chunk.size, kHeads * kHeadDim, 4}, cache.layer(l));
      for (int64_t h = 0; h < kKvHeads; ++h)
        for (int64_t s = 0; s < seen.count.dim(1); ++s)
          if (seen.count[h][s] != kAllBlocks)
            out[{l, h, chunk.begin / policy.segment + s}] = {
                seen.index[h][s].data, seen.index[h][s].data + seen.count[h][s]};
    }
    cache.advance(chunk.size);
  }
  return out;
}

TEST(FusionTest, MatchesReference) {
  const std::vector<Layer> layers = make_layers();
  for (const int64_t dense_layers : {0, 1, 2}) {
    PrefillPolicy policy = small_criti();
    policy.dense_layers = dense_layers;
    const Selected got = select(layers, policy, kTokens);

    // Fused probabilities of the layer before, by head and segment.
    std::map<std::pair<int64_t, int64_t>, std::vector<double>> before;
    int64_t n_compared = 0, n_changed = 0;
    for (int64_t l = dense_layers; l < kLayers; ++l) {
      std::vector<ref::Bounds> bounds;
      for (int64_t h = 0; h < kKvHeads; ++h) {
        Matrix k({kTokens, kHeadDim});
        for (int64_t i = 0; i < kTokens; ++i)
          std::copy_n(layers[size_t(l)].k[i].data + h * kHeadDim, kHeadDim, k[i].data);
        bounds.push_back(ref::key_bounds(k, policy.block));
      }
      const auto scores =
          ref::score_blocks(layers[size_t(l)].q, 0, policy.segment, 1, bounds, policy.block);
      for (int64_t h = 0; h < kKvHeads; ++h)
        for (int64_t s = 1; s < scores.entropy.dim(1); ++s) {
          const int64_t past = s * policy.segment / policy.block;
          const auto row = scores.score[h][s];
          std::vector<double> p;
          double z = 0;
          for (int64_t b = 0; b < past; ++b) z += std::exp(row[b]);
          for (int64_t b = 0; b < past; ++b) p.push_back(std::exp(row[b]) / z);
          const std::vector<double> own = p;
          auto& previous = before[{h, s}];
          if (l >= 2 && !previous.empty())
            for (size_t b = 0; b < p.size(); ++b) p[b] = 0.25 * previous[b] + 0.75 * p[b];
          previous = p;
          const auto at = got.find({l, h, s});
          if (at == got.end()) continue;  // dense
          const auto pick = [&](const std::vector<double>& ranks) {
            return ref::select_blocks({ranks.begin(), ranks.end()}, std::min<int64_t>(6, past),
                                      Rank::kScore, 0, 0);
          };
          EXPECT_EQ(at->second, pick(p)) << "layer " << l << " head " << h << " segment " << s;
          ++n_compared;
          n_changed += pick(p) != pick(own);
        }
    }
    EXPECT_EQ(n_compared, (kLayers - dense_layers) * kKvHeads * 8);  // segments 2 to 9
    EXPECT_GT(n_changed, 5) << "the layer before never mattered";
  }
}

TEST(FusionTest, ChunkSizeChangesNothing) {
  const std::vector<Layer> layers = make_layers();
  const Selected want = select(layers, small_criti(), kTokens);
  for (const int64_t chunk : {64, 192}) EXPECT_EQ(select(layers, small_criti(), chunk), want);
}

TEST(FusionTest, PromptsOfFewBlocksWork) {
  std::vector<Layer> layers = make_layers();
  PrefillPolicy policy = small_criti();
  policy.threshold_len = 0;
  policy.budget.base = 2048;  // more than there is
  const Selected got = select(layers, policy, 64);
  EXPECT_EQ(got.at({1, 0, 0}).size(), 0u);
  EXPECT_EQ(got.at({1, 0, 3}).size(), 12u);
}

}  // namespace
}  // namespace ei::test
