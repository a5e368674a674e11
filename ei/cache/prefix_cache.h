#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/cache/page_image.h"
#include "ei/cache/page_store.h"
#include "ei/policy/prefill_policy.h"

namespace ei {

// Pages of prompts read before, for other requests that begin with the same text under the same
// policy. There is one per layer and head, of K, V and key bounds, shared and never written again,
// beside the entropies of its segments: all that reading on from it needs, so that results are
// those of reading everything. The least recently used go first when there are more than max_bytes.
class PrefixCache {
 public:
  // `store` (null: none) is the tier below: pages are written there as they are remembered, and
  // looked for there if they are not here. `model` tells models apart there, and ways to store
  // their caches.
  PrefixCache(Backend& backend, int64_t max_bytes, PageStore* store = nullptr,
              std::string model = {})
      : backend_(backend), max_bytes_(max_bytes), store_(store), model_(std::move(model)) {}

  struct Hit {
    int64_t n_tokens = 0;
    int64_t n_loaded = 0;    // of them, from the store
    bool more = false;       // the store may have more; there was enough for now
    std::string stopped_by;  // why it is not more; empty if it is all that was wanted
  };
  // Goes on with what is known of `prompt`, up to `limit` tokens of it read under `policy`, in a
  // cache that holds whole pages of it or nothing; the entropies [max_segments, of a segment], on
  // the device, go to where whoever is to read on has them (PrefillPlan). Whole pages; a hit
  // counts those that were there, and loads max_loads from the store at most. Throws Error when
  // memory is short; the cache is then as it was.
  Hit restore(std::span<const int32_t> prompt, int64_t limit, const PrefillPolicy& policy,
              KvCache& cache, const View<float, 2>& entropies, int64_t max_loads = INT64_MAX);

  // Keeps the first n tokens of `prompt`, whole pages that were read into `cache` under `policy`
  // with these entropies, as a longer prompt would read them (PrefillPlan::reusable()).
  void remember(std::span<const int32_t> prompt, int64_t n, const PrefillPolicy& policy,
                const KvCache& cache, const View<float, 2>& entropies);

  void clear();
  int64_t bytes() const { return bytes_; }
  int64_t n_pages() const { return static_cast<int64_t>(entries_.size()); }

 private:
  using Key = uint64_t;  // hash of the policy and all tokens up to the page's end
  struct Entry {
    Key parent = 0;  // of the page before
    PrefillPolicy policy;
    std::vector<int32_t> tokens;
    std::vector<PageRef> pages;  // [n_layers, n_kv_heads]
    std::vector<float> entropies;
    int64_t bytes = 0;
    bool stored = false;  // or was to be
    std::list<Key>::iterator use;
  };

  Key root(const PrefillPolicy& policy) const;
  // The entry of this key if it is of this text and policy, and not of others with the same hash.
  Entry* find(Key parent, Key key, const PrefillPolicy& policy, std::span<const int32_t> tokens);
  Entry& insert(Key key, Entry entry, int64_t page_bytes);
  // The same from the store; null: it is not there.
  Entry* load(Key parent, Key key, const PrefillPolicy& policy, std::span<const int32_t> tokens,
              const KvCache& cache, int64_t n_entropies);
  void save(Key key, Entry& entry, const KvShape& shape);
  std::string why_not(Key parent, Key key, std::span<const int32_t> tokens, int64_t begin);
  void shrink();

  Backend& backend_;
  int64_t max_bytes_;
  PageStore* store_;
  const std::string model_;
  int64_t bytes_ = 0;
  std::unordered_map<Key, Entry> entries_;
  std::list<Key> uses_;              // most recent first; a page after those it follows
  std::unordered_set<Key> evicted_;  // lately, to say so
};

}  // namespace ei
