#include "ei/prefill/prefill.h"

#include <cmath>
#include <numeric>
#include <vector>

namespace ei {

Chunk prefill_chunk(Backend& backend, const Model& model, Activations& act, KvCache& cache,
                    QueryWindow& window, PrefillPlan& plan, std::span<const int32_t> tokens,
                    Hidden wanted, int64_t max_rows, const std::function<void()>& between_layers) {
  const ModelConfig& config = model.config();
  const Chunk chunk = plan.next(cache.n_tokens(), max_rows);
  const bool is_last = chunk.begin + chunk.size == std::ssize(tokens);
  cache.reserve(chunk.size);
  std::vector<int32_t> positions(static_cast<size_t>(chunk.size));
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(chunk.begin));
  model.embed(act, tokens.subspan(static_cast<size_t>(chunk.begin), positions.size()), positions);

  for (int l = 0; l < config.n_layers; ++l) {
    const Qkv qkv = model.project(l, act);  // norm, QKV, RoPE
    cache.append(l, qkv.k, qkv.v);          // and the key bounds of its blocks
    window.save(l, qkv.q, chunk.begin);
    const Selection seen = plan.select(l, chunk, qkv.q, cache);  // profile, allocate, select
    if (l + 1 == config.n_layers && wanted == Hidden::kLast && !is_last) break;
    backend.run(SparseAttention{.q = qkv.q,
                                .kv = cache.layer(l),
                                .begin = chunk.begin,
                                .segment = plan.policy().segment,
                                .block = plan.policy().block,
                                .selection = seen,
                                .scale = 1 / std::sqrt(static_cast<float>(config.head_dim)),
                                .out = model.context(act)});
    model.finish(l, act);  // output projection, MLP
    if (between_layers && l + 1 < config.n_layers) between_layers();
  }
  cache.advance(chunk.size);
  return chunk;
}

}  // namespace ei
