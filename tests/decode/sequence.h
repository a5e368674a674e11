#pragma once

#include <random>

#include "ei/cpu/backend.h"
#include "ei/decode/compress.h"

namespace ei::test {

inline constexpr int64_t kHeads = 4, kKvHeads = 2, kHeadDim = 16, kLayers = 2;

// A cache and window filled with random tokens, fed one by one as decoding does.
struct Sequence {
  explicit Sequence(const DecodePolicy& policy)
      : backend(make_cpu_backend(2)),
        shape{.n_layers = kLayers,
              .n_kv_heads = kKvHeads,
              .layout = {.dtype = DType::kF32, .head_dim = kHeadDim, .rows = 64, .block = 8},
              .max_tokens = 4096},
        pool(*backend, shape.layout.bytes()),
        cache(*backend, pool, shape),
        window(*backend, kLayers, Compressor::window_rows(policy), kHeads * kHeadDim) {}

  void feed(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> q(size_t(n * kHeads * kHeadDim)), k(size_t(n * kKvHeads * kHeadDim)), v(k);
    cache.reserve(n);
    for (int l = 0; l < kLayers; ++l) {
      for (auto* m : {&q, &k, &v})
        for (float& x : *m) x = normal(random);
      if (same_queries) {  // as the first ones of the layer
        auto& first = first_queries[size_t(l)];
        if (first.empty()) first.assign(q.begin(), q.begin() + kHeads * kHeadDim);
        for (size_t i = 0; i < q.size(); ++i) q[i] = first[i % first.size()];
      }
      // The first KV head's queries look more sharply than the second's.
      for (size_t i = 0; i < q.size(); ++i)
        if (int64_t(i) % (kHeads * kHeadDim) < kHeads / kKvHeads * kHeadDim) q[i] *= 4;
      // The first value of a row tells its position.
      for (int64_t i = 0; i < n * kKvHeads; ++i)
        v[size_t(i * kHeadDim)] = float(cache.n_tokens() + i / kKvHeads);
      cache.append(l, {k.data(), n, kKvHeads * kHeadDim, 4}, {v.data(), n, kKvHeads * kHeadDim, 4});
      window.save(l, {q.data(), n, kHeads * kHeadDim, 4}, cache.n_tokens());
    }
    cache.advance(n);
  }

  // The positions a head holds, by the mark in its values.
  std::vector<int64_t> positions(int layer, int64_t head) const {
    const KvLayer kv = cache.layer(layer);
    std::vector<int64_t> at;
    for (int64_t r = 0; r < kv.n_rows[head]; ++r) {
      const auto* page = static_cast<const float*>(kv.pages[head][r / kv.layout.rows]);
      at.push_back(int64_t(page[(kv.layout.first_value() + r % kv.layout.rows) * kHeadDim]));
    }
    return at;
  }

  bool same_queries = false;  // every token asks for the same
  std::vector<float> first_queries[kLayers];
  std::mt19937_64 random{1};
  std::unique_ptr<Backend> backend;
  KvShape shape;
  PagePool pool;
  KvCache cache;
  QueryWindow window;
};

inline DecodePolicy small_policy() {
  DecodePolicy policy;
  policy.budget = 100;
  policy.window = 8;
  policy.gap = 4;
  policy.kernel = 5;
  policy.regrow = 50;
  return policy;
}

}  // namespace ei::test
