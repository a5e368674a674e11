#include "ei/decode/decode.h"

#include <cmath>
#include <functional>

namespace ei {

Decoder::Decoder(Backend& backend, const Model& model, int64_t max_sequences)
    : backend_(backend), model_(model) {
  const auto n = static_cast<size_t>(max_sequences);
  tokens_.reserve(n);
  positions_.reserve(n);
  kv_.reserve(n);
  queries_.reserve(n);
}

Act Decoder::step(Activations& act, std::span<const Running> running) {
  const ModelConfig& config = model_.config();
  const float scale = 1 / std::sqrt(static_cast<float>(config.head_dim));

  tokens_.clear();
  positions_.clear();
  for (const Running& sequence : running) {
    sequence.cache->reserve(1);
    tokens_.push_back(sequence.token);
    positions_.push_back(static_cast<int32_t>(sequence.cache->n_tokens()));
  }
  model_.embed(act, tokens_, positions_);

  Act logits;
  const auto layers = [&] {
    for (int l = 0; l < config.n_layers; ++l) {
      const Qkv qkv = model_.project(l, act);
      kv_.clear();
      queries_.clear();
      for (size_t i = 0; i < running.size(); ++i) {
        kv_.push_back(running[i].cache->grow(l, 1));
        if (running[i].window->n_rows() > 0)
          queries_.push_back(
              {qkv.q.slice(static_cast<int64_t>(i), 1), positions_[i], running[i].window->ring(l)});
      }
      backend_.run(AppendKv{.k = qkv.k, .v = qkv.v, .kv = kv_});
      for (size_t i = 0; i < running.size(); ++i)
        if (running[i].whole != nullptr)
          running[i].whole->append(l, qkv.k.slice(static_cast<int64_t>(i), 1),
                                   qkv.v.slice(static_cast<int64_t>(i), 1));
      if (!queries_.empty()) backend_.run(SaveQueries{queries_});
      backend_.run(
          DecodeAttention{.q = qkv.q, .kv = kv_, .scale = scale, .out = model_.context(act)});
      model_.finish(l, act);
    }
    logits = model_.logits(act, 0, static_cast<int64_t>(running.size()));
  };
  backend_.repeat(std::ref(layers));
  return logits;
}

}  // namespace ei
