#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "ei/cache/kv_cache.h"
#include "ei/cache/query_window.h"
#include "ei/model/model.h"
#include "ei/prefill/plan.h"

namespace ei {

// Of which of a prompt's tokens the hidden states are wanted, to make logits of.
enum class Hidden { kLast, kAll };

// Reads the next chunk of a prompt that `plan` has begun: the keys and values of
// tokens[cache.n_tokens() : ...] go into `cache`, the last queries into `window`, and the chunk's
// hidden states stay in `act`, so that its logits can be had: with Hidden::kLast only those of the
// prompt's last chunk, as the last layer's attention and MLP serve nothing else. max_rows: the most
// that should be read now; one segment is the least. between_layers: called after every layer but
// the last; it may use the backend for something else.
//
//   plan.begin(n, cache.n_tokens());
//   while (cache.n_tokens() < n) report(prefill_chunk(...));   // and look at cancellation
Chunk prefill_chunk(Backend& backend, const Model& model, Activations& act, KvCache& cache,
                    QueryWindow& window, PrefillPlan& plan, std::span<const int32_t> tokens,
                    Hidden wanted, int64_t max_rows = INT64_MAX,
                    const std::function<void()>& between_layers = {});

}  // namespace ei
