#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/cpu/backend.h"
#include "tests/support/probed_backend.h"

namespace ei::test {

// Caches of two layers and heads, in small pages of one pool. What they are fed is a function of
// layer, head and position, so that caches that have read the same hold the same.
class CacheTest : public testing::Test {
 protected:
  static constexpr int64_t kLayers = 2, kHeads = 2, kHeadDim = 8, kRows = 16, kBlock = 4;

  KvCache cache() { return {backend, pool, shape}; }

  void feed(KvCache& cache, int64_t n) {
    cache.reserve(n);
    for (int l = 0; l < kLayers; ++l) {
      std::vector<float> k, v;
      for (int64_t i = cache.n_tokens(); i < cache.n_tokens() + n; ++i)
        for (int64_t j = 0; j < kHeads * kHeadDim; ++j) {
          k.push_back(value(l, i, j));
          v.push_back(value(l + 100, i, j));
        }
      const int64_t width = kHeads * kHeadDim;
      cache.append(l, {k.data(), n, width, 4}, {v.data(), n, width, 4});
    }
    cache.advance(n);
  }

  // Everything that ops see of a cache: K, V and bounds of all layers and heads.
  static std::vector<uint16_t> contents(const KvCache& cache) {
    std::vector<uint16_t> all;
    for (int l = 0; l < kLayers; ++l) {
      const KvLayer kv = cache.layer(l);
      for (int64_t h = 0; h < kv.n_kv_heads(); ++h) {
        EXPECT_EQ(kv.n_rows[h], cache.rows(l, h));
        EXPECT_LE(kv.n_rows[h], kv.rows_bound);
        for (int64_t r = 0; r < kv.n_rows[h]; ++r) {
          add(all, kv, h, r / kRows, r % kRows);
          add(all, kv, h, r / kRows, kv.layout.first_value() + r % kRows);
          if (kv.layout.block == 0) continue;
          const int64_t b = r % kRows / kBlock;
          add(all, kv, h, r / kRows, kv.layout.first_lowest() + b);
          add(all, kv, h, r / kRows, kv.layout.first_highest() + b);
        }
      }
    }
    return all;
  }
  // As a cache has that has read n tokens and nothing else.
  std::vector<uint16_t> fresh_contents(int64_t n) {
    KvCache fresh = cache();
    feed(fresh, n);
    return contents(fresh);
  }

  static const uint16_t* row(const KvLayer& kv, int64_t head, int64_t page, int64_t row) {
    return static_cast<const uint16_t*>(kv.pages[head][page]) + row * kHeadDim;
  }

  ProbedBackend backend{make_cpu_backend(2)};
  KvShape shape{.n_layers = kLayers,
                .n_kv_heads = kHeads,
                .layout = {.head_dim = kHeadDim, .rows = kRows, .block = kBlock},
                .max_tokens = 8 * kRows};
  PagePool pool{backend, shape.layout.bytes()};

 private:
  static float value(int64_t layer, int64_t position, int64_t column) {
    uint32_t x = uint32_t((layer * 1000 + position) * 1000 + column) * 2654435761u;
    x ^= x >> 15;
    return float(x % 2001) / 1000 - 1;
  }
  static void add(std::vector<uint16_t>& all, const KvLayer& kv, int64_t head, int64_t page,
                  int64_t at) {
    all.insert(all.end(), row(kv, head, page, at), row(kv, head, page, at) + kHeadDim);
  }
};

}  // namespace ei::test
