#pragma once

#include <cstdint>
#include <span>

#include "ei/cache/kv_cache.h"
#include "ei/cache/query_window.h"
#include "ei/model/model.h"
#include "ei/prefill/plan.h"

namespace ei {

// Of which of a prompt's tokens the hidden states are wanted, to make logits of.
enum class Hidden { kLast, kAll };

// Reads one chunk of a prompt that `plan` has begun, as many layers at a time as one likes: the
// keys and values of tokens[cache.n_tokens() : ...] go into `cache`, the last queries into
// `window`, and the chunk's hidden states stay in `act`, so that its logits can be had: with
// Hidden::kLast only those of the prompt's last chunk, as the last layer's attention and MLP serve
// nothing else.
//
//   plan.begin(n, cache.n_tokens());
//   while (cache.n_tokens() < n) report(prefill_chunk(...));   // and look at cancellation
class ChunkReader {
 public:
  // max_rows: the most that should be read now; one page is the least. Everything must outlive
  // the reader. Throws Error when there is no memory for the chunk.
  ChunkReader(Backend& backend, const Model& model, Activations& act, KvCache& cache,
              QueryWindow& window, PrefillPlan& plan, std::span<const int32_t> tokens,
              Hidden wanted, int64_t max_rows = INT64_MAX);

  const Chunk& chunk() const { return chunk_; }
  // Reads so many layers more, or all that are left. True once the chunk is read, and counted in
  // the cache. Between two calls the backend may be used for something else.
  bool read(int64_t n_layers = INT64_MAX);

 private:
  Backend& backend_;
  const Model& model_;
  Activations& act_;
  KvCache& cache_;
  QueryWindow& window_;
  PrefillPlan& plan_;
  Chunk chunk_;
  bool hidden_wanted_;
  int layer_ = 0;  // to be read next
};

// Reads the next chunk at once.
inline Chunk prefill_chunk(Backend& backend, const Model& model, Activations& act, KvCache& cache,
                           QueryWindow& window, PrefillPlan& plan, std::span<const int32_t> tokens,
                           Hidden wanted, int64_t max_rows = INT64_MAX) {
  ChunkReader reader(backend, model, act, cache, window, plan, tokens, wanted, max_rows);
  reader.read();
  return reader.chunk();
}

}  // namespace ei
