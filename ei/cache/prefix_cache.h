#pragma once

#include <cstdint>
#include <functional>
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

// Pages of texts read before, for requests that begin with the same text under the same policy.
// There is one per layer and head, of K, V and key bounds, shared and never written again, beside
// the entropies of its segments: all that reading on from it needs. The least recently used go
// first when there are more than max_bytes.
//
// Most pages are as any prompt reads them that begins with their text: results are those of reading
// everything. The others are a conversation's own: the dense tail of a prompt, which a longer one
// would read by its policy, and the answer, whose rows are those that it was written with. They are
// found by texts that go on from that answer, and by no others. The last of them ends where the
// answer does.
class PrefixCache {
 public:
  // `store` (null: none) is the tier below: pages are written there as they are remembered, and
  // looked for there if they are not here. `model` tells models apart there, and ways to store
  // their caches.
  PrefixCache(Backend& backend, int64_t max_bytes, PageStore* store = nullptr,
              std::string model = {})
      : backend_(backend), max_bytes_(max_bytes), store_(store), model_(std::move(model)) {}

  bool keeps_anything() const { return max_bytes_ > 0 || store_ != nullptr; }

  struct Hit {
    int64_t n_tokens = 0;
    int64_t n_loaded = 0;    // of them, from the store
    bool more = false;       // the store may have more; there was enough for now
    std::string stopped_by;  // why it is not more; empty if it is all that was wanted
  };
  // Goes on with what is known of `prompt`, up to `limit` tokens of it read under `policy`, in a
  // cache that holds whole pages of it or nothing; the entropies [max_segments, of a segment], on
  // the device, go to where whoever is to read on has them (PrefillPlan). A multiple of
  // unit_of(policy); a hit counts those that were there, and loads max_loads pages from the store
  // at most. `asked` has a number for every page in the cache and gets those of the pages found,
  // and of the one behind them, for remember(). Throws Error when memory is short; cache and
  // `asked` are then as they were.
  Hit restore(std::span<const int32_t> prompt, int64_t limit, const PrefillPolicy& policy,
              KvCache& cache, const View<float, 2>& entropies, std::vector<int64_t>& asked,
              int64_t max_loads = INT64_MAX);

  // Keeps the first n tokens of `text`, which `cache` holds as they were read under `policy` with
  // these entropies, and written from n_read on: such segments have the entropies of the one before
  // them. Page i is a conversation's own if asked[i], counted as 0 where there is none, is not 0:
  // it is the number of tokens up to where a prompt ended, and its answer began. Other pages are
  // whole, and as a longer prompt would read them (PrefillPlan::reusable()).
  void remember(std::span<const int32_t> text, int64_t n, int64_t n_read,
                const PrefillPolicy& policy, const KvCache& cache, const View<float, 2>& entropies,
                std::span<const int64_t> asked);

  // For files of their own: hands out the images of all pages of `text` that are known, the first
  // first, and takes such back, with the key of the page before, which it moves on (root() before
  // the first). Throws Error naming `where` when an image does not follow or is not of such a
  // cache and such entropies, or memory is short.
  using Key = uint64_t;  // hash of the policy and all tokens up to the page's end
  void write(std::span<const int32_t> text, const PrefillPolicy& policy, const KvShape& shape,
             const std::function<void(std::vector<std::byte>)>& take) const;
  void read(const PageImage& image, std::string_view where, const PrefillPolicy& policy,
            const KvCache& cache, const View<float, 2>& entropies, Key& parent);
  Key root(const PrefillPolicy& policy) const;
  static std::string text_of(const PrefillPolicy& policy);  // every setting, as JSON

  void clear();
  int64_t bytes() const { return bytes_; }
  int64_t n_pages() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    Key parent = 0;  // of the page before
    PrefillPolicy policy;
    std::vector<int32_t> tokens;
    std::vector<PageRef> pages;  // [n_layers, n_kv_heads]
    std::vector<float> entropies;
    int64_t asked = 0;
    int64_t bytes = 0;
    bool stored = false;  // or was to be
    std::list<Key>::iterator use;
  };
  struct Found {
    Entry* entry = nullptr;
    int64_t n_equal = 0;  // of its tokens, from the first
  };
  // What the search is for, and how far it is.
  struct Search {
    const PrefillPolicy& policy;
    const KvCache& cache;
    int64_t n_entropies;  // of a segment
    int64_t loads_left;
    Hit hit;
  };

  // The entry of this key if it is of this text and policy, and not of others with the same hash.
  const Entry* find(Key parent, Key key, const PrefillPolicy& policy,
                    std::span<const int32_t> tokens) const;
  Entry* find(Key parent, Key key, const PrefillPolicy& policy, std::span<const int32_t> tokens) {
    return const_cast<Entry*>(std::as_const(*this).find(parent, key, policy, tokens));
  }
  // The same, from the store if need be.
  Entry* find_or_load(Search& search, Key parent, Key key, std::span<const int32_t> tokens);
  // The same of a conversation's own page: all of these at once, as one is of no use without the
  // next.
  Entry* find_own(Search& search, Key parent, Key key, std::span<const int32_t> tokens);
  Entry* load(Search& search, Key parent, Key key, std::span<const int32_t> tokens);
  // Throws Error naming `where` unless an image is of the shape of what it was to be restored to.
  void check(const PageImage& image, const PrefillPolicy& policy, const KvShape& shape,
             int64_t n_entropies, std::string_view where) const;
  // The entry that has most of `tokens` in common.
  Found find_part(Search& search, Key parent, std::span<const int32_t> tokens);
  Entry& insert(Key key, Entry entry, int64_t page_bytes);
  void save(Key key, Key before, Entry& entry, const KvShape& shape);
  std::vector<std::byte> image_of(const Entry& entry, const KvShape& shape) const;
  std::string why_not(Key key, std::span<const int32_t> tokens, int64_t begin,
                      const Found& part) const;
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
