#include "ei/prefill/prefill.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace ei {

ChunkReader::ChunkReader(Backend& backend, const Model& model, Activations& act, KvCache& cache,
                         QueryWindow& window, PrefillPlan& plan, std::span<const int32_t> tokens,
                         Hidden wanted, int64_t max_rows)
    : backend_(backend),
      model_(model),
      act_(act),
      cache_(cache),
      window_(window),
      plan_(plan),
      chunk_(plan.next(cache.n_tokens(), max_rows)),
      hidden_wanted_(wanted == Hidden::kAll || chunk_.begin + chunk_.size == std::ssize(tokens)) {
  cache.reserve(chunk_.size);
  std::vector<int32_t> positions(static_cast<size_t>(chunk_.size));
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(chunk_.begin));
  model.embed(act, tokens.subspan(static_cast<size_t>(chunk_.begin), positions.size()), positions);
}

bool ChunkReader::read(int64_t n_layers) {
  const auto last = static_cast<int>(model_.config().n_layers) - 1;
  const float scale = 1 / std::sqrt(static_cast<float>(model_.config().head_dim));
  for (; layer_ <= last && n_layers > 0; ++layer_, --n_layers) {
    const Qkv qkv = model_.project(layer_, act_);  // norm, QKV, RoPE
    cache_.append(layer_, qkv.k, qkv.v);           // and the key bounds of its blocks
    window_.save(layer_, qkv.q, chunk_.begin);
    const KvLayer kv = cache_.layer(layer_);
    const Selection seen = plan_.select(layer_, chunk_, qkv.q, kv);  // profile, allocate, select
    if (layer_ == last && !hidden_wanted_) continue;
    backend_.run(SparseAttention{.q = qkv.q,
                                 .kv = kv,
                                 .begin = chunk_.begin,
                                 .segment = plan_.policy().segment,
                                 .block = plan_.policy().block,
                                 .selection = seen,
                                 .scale = scale,
                                 .out = model_.context(act_)});
    model_.finish(layer_, act_);  // output projection, MLP
  }
  if (layer_ <= last) return false;
  cache_.advance(chunk_.size);
  return true;
}

}  // namespace ei
