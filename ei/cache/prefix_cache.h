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
// the entropies of its segments: all that reading on from it needs. The least recently used leave
// the device first, for the host's memory if there are pages of it, and that for files.
//
// Most pages are as any prompt reads them that begins with their text: results are those of reading
// everything. The others are a conversation's own: the dense tail of a prompt, which a longer one
// would read by its policy, and the answer, whose rows are those that it was written with. They are
// found by texts that go on from that answer, and by no others. The last of them ends where the
// answer does.
class PrefixCache {
 public:
  // Keeps max_bytes on the device. `host` (null: none) has as many pages as may be kept beside it,
  // of the size of the caches'. `store` (null: none) is the tier below: pages are written there as
  // they are remembered, and looked for there if they are not here. `model` tells models apart
  // there, and ways to store their caches.
  PrefixCache(Backend& backend, int64_t max_bytes, PagePool* host = nullptr,
              PageStore* store = nullptr, std::string model = {});
  ~PrefixCache() { clear(); }
  PrefixCache(const PrefixCache&) = delete;

  bool keeps_anything() const {
    return device_.max_bytes > 0 || host_.max_bytes > 0 || store_ != nullptr;
  }

  // Copies from the host's memory run beside the step that comes next: a page of an 8B model takes
  // about a millisecond, one of a file tens of them, and the host's thread.
  static constexpr int64_t kHostLoads = 8;
  // Entries that leave the device for the host's memory at a time; others that should go with the
  // next call. More copies than a device queues would hold up whoever asks for them.
  static constexpr int64_t kMaxDemoted = 32;
  struct Hit {
    int64_t n_tokens = 0;
    int64_t n_host = 0;      // of them, from the host's memory
    int64_t n_loaded = 0;    // of them, from the store
    bool more = false;       // there may be more; there was enough for now
    std::string stopped_by;  // why it is not more; empty if it is all that was wanted
  };
  // Goes on with what is known of `prompt`, up to `limit` tokens of it read under `policy`, in a
  // cache that holds whole pages of it or nothing; the entropies [max_segments, of a segment], on
  // the device, go to where whoever is to read on has them (PrefillPlan). A multiple of
  // unit_of(policy); a hit counts those that were there, and loads max_loads pages from the store
  // at most, or kHostLoads times as many from the host's memory. Nothing is to be read from the
  // cache while there may be more. `asked` has a number for every page in the cache and gets those
  // of the pages found, and of the one behind them, for remember(). Throws Error when memory is
  // short; cache and `asked` are then as they were.
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

  // For files of their own: hands out the images of all pages of `text`, of so many tokens each,
  // that are known, the first first, and takes such back, with the key of the page before, which it
  // moves on (root() before the first). Throws Error naming `where` when an image does not follow
  // or is not of such a cache and such entropies, or memory is short.
  using Key = uint64_t;  // hash of the policy and all tokens up to the page's end
  void write(std::span<const int32_t> text, const PrefillPolicy& policy, int64_t page,
             const std::function<void(std::vector<std::byte>)>& take);
  void read(const PageImage& image, std::string_view where, const PrefillPolicy& policy,
            const KvCache& cache, const View<float, 2>& entropies, Key& parent);
  Key root(const PrefillPolicy& policy) const;
  static std::string text_of(const PrefillPolicy& policy);  // every setting, as JSON

  void clear();
  int64_t bytes() const { return device_.bytes; }
  int64_t host_bytes() const { return host_.bytes; }
  int64_t n_pages() const { return static_cast<int64_t>(entries_.size()); }

 private:
  // Entries whose pages are in memory of one kind.
  struct Tier {
    int64_t max_bytes = 0;
    int64_t bytes = 0;
    std::list<Key> uses;  // most recent first; a page after those it follows
  };
  struct Entry {
    Key parent = 0;  // of the page before
    PrefillPolicy policy;
    PageLayout layout;
    std::vector<int32_t> tokens;
    std::vector<PageRef> pages;  // [n_layers, n_kv_heads]
    std::vector<float> entropies;
    int64_t asked = 0;
    int64_t bytes = 0;
    bool stored = false;  // or was to be
    Tier* tier = nullptr;
    std::list<Key>::iterator use;  // among the tier's
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
    int64_t loads_left;   // from the host's memory; one from the store is kHostLoads
    Hit hit;
  };

  // The entry of this key if it is of this text and policy, and not of others with the same hash.
  const Entry* find(Key parent, Key key, const PrefillPolicy& policy,
                    std::span<const int32_t> tokens) const;
  Entry* find(Key parent, Key key, const PrefillPolicy& policy, std::span<const int32_t> tokens) {
    return const_cast<Entry*>(std::as_const(*this).find(parent, key, policy, tokens));
  }
  bool knows(Key parent, Key key, const PrefillPolicy& policy,
             std::span<const int32_t> tokens) const;  // here or in the store
  // Up to where `text` is known in pages that are of use to it, from its token `at` on, before
  // which `parent` is; and if it goes on with the page of a key.
  int64_t reach(const PrefillPolicy& policy, Key parent, std::span<const int32_t> text, int64_t at,
                int64_t page) const;
  int64_t reach_by(Key key, const PrefillPolicy& policy, Key parent, std::span<const int32_t> text,
                   int64_t at, int64_t page) const;
  // Whether `text` goes on with a conversation's own page: where there is another as well, the one
  // that leads further is taken.
  bool goes_on_own(const PrefillPolicy& policy, Key parent, std::span<const int32_t> text,
                   int64_t at, int64_t page) const;
  // The entry on the device, from the tiers below if need be.
  Entry* find_or_load(Search& search, Key parent, Key key, std::span<const int32_t> tokens);
  // The same of a conversation's own page: all of these at once, as one is of no use without the
  // next.
  Entry* find_own(Search& search, Key parent, Key key, std::span<const int32_t> tokens);
  // Copies an entry's pages into fresh ones on the device, if they are not there.
  Entry* promote(Search& search, Entry* entry);
  Entry* load(Search& search, Key parent, Key key, std::span<const int32_t> tokens);
  // Throws Error naming `where` unless an image is of the shape of what it was to be restored to.
  void check(const PageImage& image, const PrefillPolicy& policy, const KvShape& shape,
             int64_t n_entropies, std::string_view where) const;
  // The entry that has most of `tokens` in common.
  Found find_part(Search& search, Key parent, std::span<const int32_t> tokens);
  Entry& insert(Key key, Entry entry);
  static void touch(Entry& entry);  // it was used
  // Copies an entry's pages to others of the other kind of memory, which take their place.
  void move(Entry& entry, std::vector<PageRef> to, Tier& tier);
  void save(Key key, Entry& entry);
  std::vector<std::byte> image_of(const Entry& entry);
  std::string why_not(Key key, std::span<const int32_t> tokens, int64_t begin,
                      const Found& part) const;
  void shrink() noexcept;
  bool demote(Entry& entry) noexcept;  // false: there is no room, or it cannot be copied
  void forget(Key key) noexcept;
  void release_copied();
  void await_copies();

  Backend& backend_;
  PagePool* host_pages_;
  PageStore* store_;
  const std::string model_;
  std::unordered_map<Key, Entry> entries_;
  Tier device_, host_;
  std::unordered_set<Key> evicted_;  // lately, to say so
  // The device's of what is being copied, either way: no op may write to them meanwhile.
  std::vector<PageRef> moving_;
};

}  // namespace ei
