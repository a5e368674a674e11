#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/policy/prefill_policy.h"

namespace ei {

// Segments of prompts read before, for other requests that begin with the same text under the same
// policy. A segment is one page of K and V per layer and head, shared and never written again, with
// its key bounds and entropies: all that reading on from it needs, so that results are those of
// reading everything. The least recently used go first when there are more than max_bytes.
class PrefixCache {
 public:
  PrefixCache(Backend& backend, int64_t max_bytes) : backend_(backend), max_bytes_(max_bytes) {}

  // Of every layer [n_kv_heads, max_segments], on the device; empty for a layer that is dense.
  using Entropies = std::span<const View<float, 2>>;

  struct Hit {
    int64_t n_tokens = 0;
    std::string stopped_by;  // why it is not more; empty if it is all that was wanted
  };
  // Puts the longest known prefix of `prompt`, of at most `limit` tokens read under `policy`, into
  // an empty cache and into the entropies of whoever is to read on. Whole segments.
  Hit restore(std::span<const int32_t> prompt, int64_t limit, const PrefillPolicy& policy,
              KvCache& cache, Entropies entropies);

  // Keeps the first n tokens of `prompt`, whole segments that were read into `cache` under `policy`
  // with these entropies, as a longer prompt would read them (PrefillPlan::reusable()).
  void remember(std::span<const int32_t> prompt, int64_t n, const PrefillPolicy& policy,
                const KvCache& cache, Entropies entropies);

  void clear();
  int64_t bytes() const { return bytes_; }
  int64_t n_segments() const { return static_cast<int64_t>(entries_.size()); }

 private:
  using Key = uint64_t;  // hash of the policy and all tokens up to the segment's end
  struct Entry {
    Key parent = 0;  // of the segment before; entries are compared by their tokens as well
    std::vector<int32_t> tokens;
    std::vector<PageRef> pages;                 // [n_layers, n_kv_heads]
    std::vector<float> bounds_min, bounds_max;  // [n_layers, n_kv_heads, blocks, d]
    std::vector<float> entropy;                 // [n_layers, n_kv_heads]
    int64_t bytes = 0;
    std::list<Key>::iterator use;
  };

  Key root(const PrefillPolicy& policy);
  Entry* find(Key parent, Key key, std::span<const int32_t> tokens);
  std::string why_not(Key parent, Key key, std::span<const int32_t> tokens, int64_t begin);
  // Between a segment's entry and the cache that has it.
  enum class Copy { kSave, kRestore };
  void copy(Copy direction, Entry& entry, int64_t segment, const KvCache& cache,
            Entropies entropies);
  void shrink();

  Backend& backend_;
  int64_t max_bytes_;
  int64_t bytes_ = 0;
  std::vector<PrefillPolicy> policies_;
  std::unordered_map<Key, Entry> entries_;
  std::list<Key> uses_;              // most recent first; a segment after those it follows
  std::unordered_set<Key> evicted_;  // lately, to say so
};

}  // namespace ei
