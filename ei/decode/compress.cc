#include "ei/decode/compress.h"

#include <algorithm>
#include <cmath>

namespace ei {

int64_t Compressor::window_rows(const DecodePolicy& policy) {
  if (policy.is_full()) return 0;
  return policy.window + (policy.off_by_one ? 1 : 0);
}

bool Compressor::due(const KvCache& cache) const {
  if (policy_.is_full()) return false;
  if (!cache.compacted() && n_prompt_ > policy_.budget)
    return cache.n_tokens() >= n_prompt_ + std::max<int64_t>(0, policy_.gap);
  return policy_.regrow > 0 && cache.most_rows() >= policy_.budget + policy_.regrow;
}

void Compressor::run(Backend& backend, KvCache& cache, const QueryWindow& window,
                     int64_t n_heads) const {
  const KvShape& shape = cache.shape();
  const float scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  // The reference's window ends one token before the newest.
  const int64_t oldest = cache.n_tokens() - policy_.window - (policy_.off_by_one ? 1 : 0);

  for (int l = 0; l < shape.n_layers; ++l) {
    const KvLayer layer = cache.layer(l);
    const int64_t heads = policy_.scope == KvScope::kQueryHead ? n_heads : layer.n_kv_heads();
    const int64_t most = layer.rows_bound - policy_.window;
    const DeviceArray<float, 2> votes(backend, {heads, most}), pooled(backend, {heads, most});
    std::vector<int32_t> before_window;
    for (int64_t h = 0; h < heads; ++h)
      before_window.push_back(
          static_cast<int32_t>(cache.rows(l, h * layer.n_kv_heads() / heads) - policy_.window));
    const DeviceArray<int32_t, 1> n_votes(backend, before_window);
    const DeviceArray<int32_t, 2> rows(backend, {heads, policy_.budget});
    const DeviceArray<int32_t, 1> count(backend, {heads});
    const Keep keep = {rows.view(), count.view()};

    backend.run(Vote{.window = window.ring(l),
                     .first = oldest % window.n_rows(),
                     .n_queries = policy_.window,
                     .kv = layer,
                     .scale = scale,
                     .reduce = policy_.reduce,
                     .votes = votes.view()});
    backend.run(PoolVotes{.votes = votes.view(),
                          .n_votes = n_votes.view(),
                          .pooling = policy_.pooling,
                          .kernel = policy_.kernel,
                          .out = pooled.view()});
    backend.run(KeepTop{.votes = pooled.view(),
                        .n_votes = n_votes.view(),
                        .n_top = policy_.budget - policy_.window,
                        .window = policy_.window,
                        .out = keep});
    cache.compact(l, keep);
  }
}

}  // namespace ei
