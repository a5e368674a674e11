#include <fmt/format.h>

#include <algorithm>

#include "ei/base/fail.h"
#include "ei/cache/prefix_cache.h"
#include "ei/cache/prefix_key.h"
#include "ei/ops/host_memory.h"
#include "ei/policy/settings.h"

// Of PrefixCache: what is known of a text, and what brings it to the device.
namespace ei {
namespace {

// Tokens at a prompt's end that templates may leave out once the answer stands behind it.
constexpr int64_t kPromptEnd = 16;

}  // namespace

const PrefixCache::Entry* PrefixCache::find(Key parent, Key key, const PrefillPolicy& policy,
                                            std::span<const int32_t> tokens) const {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return nullptr;
  const Entry& entry = it->second;
  const bool same =
      entry.parent == parent && entry.policy == policy && std::ranges::equal(entry.tokens, tokens);
  return same ? &entry : nullptr;
}

bool PrefixCache::knows(Key parent, Key key, const PrefillPolicy& policy,
                        std::span<const int32_t> tokens) const {
  return find(parent, key, policy, tokens) != nullptr || (store_ != nullptr && store_->has(key));
}

// Every page has one page before it: none is looked at twice.
int64_t PrefixCache::reach(const PrefillPolicy& policy, Key parent, std::span<const int32_t> text,
                           int64_t at, int64_t page) const {
  if (at >= std::ssize(text)) return at;
  const auto tokens = page_at(text, at, page);
  const Key next = page_key(parent, tokens);
  int64_t end = at;
  if (std::ssize(tokens) == page)
    for (const Key key : {next, own_key(next)})
      end = std::max(end, reach_by(key, policy, parent, text, at, page));
  if (end > at) return end;
  for (const auto& [key, entry] : entries_) {
    if (entry.parent != parent || !(entry.policy == policy)) continue;
    const auto differ = std::ranges::mismatch(entry.tokens, tokens);
    const int64_t part_end = at + (differ.in1 - entry.tokens.begin());
    if (entry.asked - kPromptEnd <= part_end) end = std::max(end, part_end);
  }
  if (store_ == nullptr) return end;
  Key key = parent;
  for (size_t n = 1; n <= tokens.size(); ++n) {
    key = page_key(key, tokens.subspan(n - 1, 1));
    if (store_->has(own_key(key))) end = std::max(end, at + static_cast<int64_t>(n));
  }
  return end;
}

int64_t PrefixCache::reach_by(Key key, const PrefillPolicy& policy, Key parent,
                              std::span<const int32_t> text, int64_t at, int64_t page) const {
  const auto tokens = page_at(text, at, page);
  if (!knows(parent, key, policy, tokens)) return at;
  const int64_t end = reach(policy, key, text, at + page, page);
  // What a file has to be asked for is taken to be of use.
  const Entry* const entry = find(parent, key, policy, tokens);
  return entry != nullptr && entry->asked - kPromptEnd > end ? at : end;
}

bool PrefixCache::goes_on_own(const PrefillPolicy& policy, Key parent,
                              std::span<const int32_t> text, int64_t at, int64_t page) const {
  const auto tokens = page_at(text, at, page);
  const Key next = page_key(parent, tokens), own = own_key(next);
  if (!knows(parent, own, policy, tokens)) return false;
  return !knows(parent, next, policy, tokens) || reach_by(own, policy, parent, text, at, page) >
                                                     reach_by(next, policy, parent, text, at, page);
}

PrefixCache::Hit PrefixCache::restore(std::span<const int32_t> prompt, int64_t limit,
                                      const PrefillPolicy& policy, KvCache& cache,
                                      const View<float, 2>& entropies, std::vector<int64_t>& asked,
                                      int64_t max_loads) {
  const int64_t page = cache.shape().layout.rows, n_there = cache.n_tokens();
  const int64_t loads = std::min(max_loads, INT64_MAX / kHostLoads) * kHostLoads;
  Search search = {policy, cache, entropies.dim(1), loads, {.n_tokens = n_there}};
  Hit& hit = search.hit;
  release_copied();

  Key key = root(policy);
  for (int64_t at = 0; at < n_there; at += page) {
    const auto i = static_cast<size_t>(at / page);
    key = page_key(key, page_at(prompt, at, page));
    if (i < asked.size() && asked[i] > 0) key = own_key(key);
  }

  std::vector<Found> found;
  int64_t at = n_there;
  while (at + unit_of(policy) <= limit && !hit.more) {
    const auto tokens = page_at(prompt, at, page);
    const Key next = page_key(key, tokens);
    Entry* entry = nullptr;
    if (std::ssize(tokens) == page)
      entry = goes_on_own(policy, key, prompt, at, page)
                  ? find_own(search, key, own_key(next), tokens)
                  : find_or_load(search, key, next, tokens);
    Found part{entry, page};
    if (entry == nullptr && !hit.more) {
      part = find_part(search, key, tokens);
      promote(search, part.entry);
      hit.stopped_by = why_not(next, tokens, at, part);
    }
    if (part.entry != nullptr) found.push_back(part);
    if (entry == nullptr) break;
    key = entry->asked > 0 ? own_key(next) : next;
    at += page;
  }

  // A conversation's own pages are of use to who goes on from its answer: to where that begins, all
  // are its own.
  const auto ends_at = [&](size_t i) {
    return n_there + static_cast<int64_t>(i) * page + found[i].n_equal;
  };
  std::vector<bool> good(found.size());
  for (size_t i = found.size(); i-- > 0;) {
    good[i] = found[i].entry->asked - kPromptEnd <= ends_at(i) ||
              (i + 1 < found.size() && good[i + 1] && found[i + 1].entry->asked > 0);
  }
  const auto n_good = static_cast<size_t>(std::ranges::find(good, false) - good.begin());
  if (n_good < found.size()) {
    hit.stopped_by = fmt::format("from token {} on it is known as the end of another prompt",
                                 n_there + static_cast<int64_t>(n_good) * page);
    found.resize(n_good);
  }
  const auto nothing = [&] {  // the prompt is read instead of looked for again
    hit.more = false;
    hit.n_host = hit.n_loaded = 0;
    await_copies();
    shrink();
    return hit;
  };
  if (found.empty()) return nothing();

  const int64_t unit = unit_of(policy), n_last = (std::ssize(found) - 1) * page;
  const int64_t usable = std::min(found.back().n_equal, limit - n_there - n_last);
  const int64_t n = n_last + usable / unit * unit;
  if (n_there + n + unit > limit) hit.stopped_by.clear();
  std::vector<int64_t> all_asked = asked;
  for (const auto& [entry, n_equal] : found) all_asked.push_back(entry->asked);
  if (n == n_last) found.pop_back();
  if (found.empty()) return nothing();
  std::vector<std::span<const PageRef>> pages;
  std::vector<float> all;
  for (const auto& [entry, n_equal] : found) {
    pages.push_back(entry->pages);
    all.insert(all.end(), entry->entropies.begin(), entry->entropies.end());
  }
  // What is copied beside the next step has to be waited for before it is read: by the next call,
  // if there is to be one.
  if (hit.n_host > 0 && max_loads < INT64_MAX && n % page == 0 && n_there + n + unit <= limit)
    hit.more = true;
  if (!hit.more) await_copies();
  all.resize(std::min(all.size(), static_cast<size_t>(n_segments(n, policy) * search.n_entropies)));
  float* const to = entropies.data + n_there / policy.segment * entropies.dim(1);
  backend_.copy_in(to, all.data(), std::ssize(all) * int64_t{sizeof(float)});
  cache.adopt(pages, n);
  asked = std::move(all_asked);
  for (size_t i = found.size(); i-- > 0;) touch(*found[i].entry);
  // What was loaded takes the place of something else, which goes once all of it is on its way.
  if (!hit.more || hit.n_host == 0) shrink();
  hit.n_tokens += n;
  hit.n_host = std::min(hit.n_host, n);
  hit.n_loaded = std::min(hit.n_loaded, n);
  return hit;
}

PrefixCache::Entry* PrefixCache::find_or_load(Search& search, Key parent, Key key,
                                              std::span<const int32_t> tokens) {
  Entry* const entry = find(parent, key, search.policy, tokens);
  if (entry != nullptr && entry->tier == &device_) return entry;
  if (search.hit.more || (entry == nullptr && (store_ == nullptr || !store_->has(key))))
    return nullptr;
  search.loads_left -= entry != nullptr ? 1 : kHostLoads;
  search.hit.more = search.loads_left < 0;
  if (search.hit.more) return nullptr;
  return entry != nullptr ? promote(search, entry) : load(search, parent, key, tokens);
}

PrefixCache::Entry* PrefixCache::find_own(Search& search, Key parent, Key key,
                                          std::span<const int32_t> tokens) {
  Entry* const entry = find(parent, key, search.policy, tokens);
  if (search.hit.more) return entry != nullptr && entry->tier == &device_ ? entry : nullptr;
  if (entry != nullptr) return promote(search, entry);
  return store_ != nullptr && store_->has(key) ? load(search, parent, key, tokens) : nullptr;
}

PrefixCache::Entry* PrefixCache::promote(Search& search, Entry* entry) {
  if (entry == nullptr || entry->tier == &device_) return entry;
  std::vector<PageRef> pages;
  while (pages.size() < entry->pages.size()) pages.push_back(search.cache.pool().take());
  move(*entry, std::move(pages), device_);
  search.hit.n_host += std::ssize(entry->tokens);
  return entry;
}

PrefixCache::Found PrefixCache::find_part(Search& search, Key parent,
                                          std::span<const int32_t> tokens) {
  Found best;
  for (auto& [key, entry] : entries_) {
    if (entry.parent != parent || !(entry.policy == search.policy)) continue;
    const auto differ = std::ranges::mismatch(entry.tokens, tokens);
    const int64_t n_equal = differ.in1 - entry.tokens.begin();
    if (n_equal > best.n_equal) best = {&entry, n_equal};
  }
  if (store_ == nullptr) return best;
  // A file is found by all of its tokens: the end of a conversation.
  std::vector<Key> keys;
  for (size_t n = 1; n <= tokens.size(); ++n)
    keys.push_back(page_key(n == 1 ? parent : keys.back(), tokens.subspan(n - 1, 1)));
  for (size_t n = keys.size(); n > static_cast<size_t>(best.n_equal); --n)
    if (Entry* entry = find_own(search, parent, own_key(keys[n - 1]), tokens.first(n)))
      return {entry, static_cast<int64_t>(n)};
  return best;
}

PrefixCache::Entry* PrefixCache::load(Search& search, Key parent, Key key,
                                      std::span<const int32_t> tokens) {
  const std::vector<std::byte> bytes = store_->get(key);
  if (bytes.empty() || entries_.contains(key)) return nullptr;
  const std::string where = store_->path(key).string();
  const KvShape& shape = search.cache.shape();
  PageImage image;
  try {
    image = parse_image(bytes, where);
    check(image, search.policy, shape, search.n_entropies, where);
    require(image.parent == parent && std::ranges::equal(image.tokens, tokens) &&
                (image.asked > 0) == (key == own_key(page_key(parent, tokens))),
            "{}: is of another text", where);
  } catch (const Error& error) {
    store_->discard(key, error.what());
    return nullptr;
  }
  std::vector<PageRef> pages = take_pages(image, backend_, shape, search.cache.pool());
  Entry& entry = insert(key, {.parent = parent,
                              .policy = search.policy,
                              .layout = shape.layout,
                              .tokens = std::move(image.tokens),
                              .pages = std::move(pages),
                              .entropies = std::move(image.entropies),
                              .asked = image.asked,
                              .stored = true});
  search.hit.n_loaded += std::ssize(tokens);
  return &entry;
}

std::string PrefixCache::why_not(Key key, std::span<const int32_t> tokens, int64_t begin,
                                 const Found& part) const {
  if (entries_.empty()) return "nothing is cached yet";
  if (evicted_.contains(key) || evicted_.contains(own_key(key)))
    return fmt::format("evicted from token {} on", begin);
  if (part.n_equal > 0 && part.n_equal < std::ssize(part.entry->tokens) &&
      part.n_equal < std::ssize(tokens))
    return fmt::format("the text differs from token {} on", begin + part.n_equal);
  if (begin + part.n_equal > 0)
    return fmt::format("the text was cached up to token {}", begin + part.n_equal);
  for (const auto& [k, entry] : entries_)
    if (std::ranges::equal(entry.tokens, tokens)) return "it was read under another policy";
  return "the text is new";
}

}  // namespace ei
