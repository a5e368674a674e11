#include "ei/decode/decode.h"

#include <cmath>
#include <functional>

namespace ei {

Decoder::Decoder(Backend& backend, const Model& model, int64_t max_sequences)
    : backend_(backend), model_(model) {
  const auto n = static_cast<size_t>(max_sequences);
  tokens_.reserve(n);
  positions_.reserve(n);
  at_.reserve(n);
  kv_.reserve(n);
  rings_.reserve(n);
}

Act Decoder::step(Activations& act, std::span<const Running> running) {
  const ModelConfig& config = model_.config();
  const float scale = 1 / std::sqrt(static_cast<float>(config.head_dim));

  tokens_.clear();
  positions_.clear();
  at_.clear();
  for (const Running& sequence : running) {
    sequence.cache->reserve(1);
    tokens_.push_back(sequence.token);
    at_.push_back(sequence.cache->n_tokens());
    positions_.push_back(static_cast<int32_t>(at_.back()));
  }
  model_.embed(act, tokens_, positions_);

  Act logits;
  const auto layers = [&] {
    for (int l = 0; l < config.n_layers; ++l) {
      const Qkv qkv = model_.project(l, act);
      kv_.clear();
      rings_.clear();
      for (const Running& sequence : running) {
        kv_.push_back(sequence.cache->grow(l, 1));
        if (sequence.window->n_rows() > 0) rings_.push_back(sequence.window->ring(l));
      }
      backend_.run(AppendKv{.k = qkv.k, .v = qkv.v, .kv = kv_});
      if (!rings_.empty()) backend_.run(SaveQueries{.q = qkv.q, .rings = rings_, .positions = at_});
      backend_.run(
          DecodeAttention{.q = qkv.q, .kv = kv_, .scale = scale, .out = model_.context(act)});
      model_.finish(l, act);
    }
    logits = model_.logits(act, 0, static_cast<int64_t>(running.size()));
  };
  backend_.repeat(std::ref(layers));

  for (const Running& sequence : running) {
    sequence.cache->advance(1);
    if (sequence.compressor->due(*sequence.cache))
      sequence.compressor->run(backend_, *sequence.cache, *sequence.window, config.n_heads);
  }
  return logits;
}

}  // namespace ei
