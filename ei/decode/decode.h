#pragma once

#include <span>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/cache/query_window.h"
#include "ei/model/model.h"

namespace ei {

// One running sequence, as the decode loop sees it.
struct Running {
  KvCache* cache = nullptr;
  QueryWindow* window = nullptr;
  int32_t token = 0;         // to be read by the next step
  KvCache* whole = nullptr;  // that gets the token's rows as well, and has room; null: none
};

// The token loop's body, and its scratch, which is made once.
class Decoder {
 public:
  Decoder(Backend& backend, const Model& model, int64_t max_sequences);

  // One step: every sequence reads its token, all in one batch. Returns the logits of the next
  // tokens, [n_sequences, vocab_size], valid until `act` is used again. The caches have the tokens'
  // rows but do not count them: that is for KvCache::advance() or, if anything was thrown here or
  // is not to be, for rewind().
  Act step(Activations& act, std::span<const Running> running);

 private:
  Backend& backend_;
  const Model& model_;
  std::vector<int32_t> tokens_, positions_;
  std::vector<KvLayer> kv_;
  std::vector<SaveQueries::Entry> queries_;
};

}  // namespace ei
