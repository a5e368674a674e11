#include "ei/cache/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "ei/base/fail.h"
#include "ei/io/checksum.h"
#include "ei/io/json.h"
#include "ei/ops/host_memory.h"
#include "ei/policy/settings.h"

namespace ei {
namespace {

constexpr size_t kMaxEvictedKnown = 65536;
// Tokens at a prompt's end that templates may leave out once the answer stands behind it.
constexpr int64_t kPromptEnd = 16;

uint64_t mix(uint64_t z) {  // splitmix64
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

template <class T>
uint64_t bits_of(T value) {
  if constexpr (std::is_same_v<T, float>) {
    return std::bit_cast<uint32_t>(value + 0.0f);  // -0 equals 0
  } else {
    return static_cast<uint64_t>(value);
  }
}

uint64_t hash_of(const PrefillPolicy& policy) {
  uint64_t hash = 0;
  for_each_setting(policy, [&](const char*, auto value) { hash = mix(hash ^ bits_of(value)); });
  return hash;
}

uint64_t chain(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = parent;
  for (const int32_t token : tokens) hash = mix(hash ^ static_cast<uint32_t>(token));
  return hash;
}

// Of a page that is a conversation's own, which may lie beside one that is not.
uint64_t own(uint64_t key) { return mix(key ^ 0x636F6E76); }

// Of the text from `at` on, what a page of it holds.
std::span<const int32_t> page_at(std::span<const int32_t> text, int64_t at, int64_t size) {
  return text.subspan(static_cast<size_t>(at),
                      static_cast<size_t>(std::min(size, std::ssize(text) - at)));
}

int64_t n_segments(int64_t n_tokens, const PrefillPolicy& policy) {
  return (n_tokens + policy.segment - 1) / policy.segment;
}

}  // namespace

PrefixCache::PrefixCache(Backend& backend, int64_t max_bytes, PagePool* host, PageStore* store,
                         std::string model)
    : backend_(backend),
      host_pages_(host),
      store_(store),
      model_(std::move(model)),
      device_{.max_bytes = max_bytes, .uses = {}},
      host_{.max_bytes = host != nullptr ? host->n_free() * host->page_bytes() : 0, .uses = {}} {}

std::string PrefixCache::text_of(const PrefillPolicy& policy) {
  OrderedJson settings;
  for_each_setting(policy, [&](const char* name, auto value) {
    if constexpr (std::is_same_v<decltype(value), float>) {
      settings[name] = OrderedJson::parse(fmt::format("{}", value));  // 0.86, not its neighbours
    } else {
      settings[name] = value;
    }
  });
  return settings.dump();
}

PrefixCache::Key PrefixCache::root(const PrefillPolicy& policy) const {
  return hash_of(policy) ^ checksum(std::as_bytes(std::span(model_)));
}

const PrefixCache::Entry* PrefixCache::find(Key parent, Key key, const PrefillPolicy& policy,
                                            std::span<const int32_t> tokens) const {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return nullptr;
  const Entry& entry = it->second;
  const bool same =
      entry.parent == parent && entry.policy == policy && std::ranges::equal(entry.tokens, tokens);
  return same ? &entry : nullptr;
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
    key = chain(key, page_at(prompt, at, page));
    if (i < asked.size() && asked[i] > 0) key = own(key);
  }

  std::vector<Found> found;
  int64_t at = n_there;
  while (at + unit_of(policy) <= limit && !hit.more) {
    const auto tokens = page_at(prompt, at, page);
    const Key next = chain(key, tokens);
    Entry* entry = nullptr;
    if (std::ssize(tokens) == page) {
      entry = find_or_load(search, key, next, tokens);
      if (entry == nullptr) entry = find_own(search, key, own(next), tokens);
    }
    Found part{entry, page};
    if (entry == nullptr && !hit.more) {
      part = find_part(search, key, tokens);
      promote(search, part.entry);
      hit.stopped_by = why_not(next, tokens, at, part);
    }
    if (part.entry != nullptr) found.push_back(part);
    if (entry == nullptr) break;
    key = entry->asked > 0 ? own(next) : next;
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
    keys.push_back(chain(n == 1 ? parent : keys.back(), tokens.subspan(n - 1, 1)));
  for (size_t n = keys.size(); n > static_cast<size_t>(best.n_equal); --n)
    if (Entry* entry = find_own(search, parent, own(keys[n - 1]), tokens.first(n)))
      return {entry, static_cast<int64_t>(n)};
  return best;
}

void PrefixCache::remember(std::span<const int32_t> text, int64_t n, int64_t n_read,
                           const PrefillPolicy& policy, const KvCache& cache,
                           const View<float, 2>& entropies, std::span<const int64_t> asked) {
  release_copied();
  const KvShape& shape = cache.shape();
  const int64_t page = shape.layout.rows, n_pages = shape.layout.pages(n);
  const int64_t width = entropies.dim(1);
  std::vector<float> all;  // once there is something new
  Key parent = root(policy);
  std::vector<Entry*> path;
  std::vector<Key> keys;
  for (int64_t i = 0; i < n_pages; ++i) {
    const auto tokens = page_at(text.first(static_cast<size_t>(n)), i * page, page);
    const int64_t its_asked = i < std::ssize(asked) ? asked[static_cast<size_t>(i)] : 0;
    const Key next = chain(parent, tokens), key = its_asked > 0 ? own(next) : next;
    Entry* entry = find(parent, key, policy, tokens);
    if (entry == nullptr) {
      if (entries_.contains(key)) break;     // another text or policy of the same hash
      if (cache.page(0, 0, i) == nullptr) {  // left out by tail_of(), and no longer in memory
        if (store_ == nullptr || !store_->has(key)) break;
        keys.push_back(key);
        parent = key;
        continue;
      }
      if (all.empty() && width > 0) {
        all.resize(static_cast<size_t>(n_segments(n, policy) * width));
        backend_.copy_out(all.data(), entropies.data, std::ssize(all) * int64_t{sizeof(float)});
        for (auto written = n_segments(n_read, policy) * width; written < std::ssize(all);
             ++written)
          all[static_cast<size_t>(written)] = all[static_cast<size_t>(written - width)];
      }
      Entry fresh;
      fresh.parent = parent;
      fresh.policy = policy;
      fresh.layout = shape.layout;
      fresh.tokens.assign(tokens.begin(), tokens.end());
      fresh.asked = its_asked;
      for (int l = 0; l < shape.n_layers; ++l)
        for (int64_t h = 0; h < shape.n_kv_heads; ++h) fresh.pages.push_back(cache.page(l, h, i));
      if (width > 0) {
        const auto of_page = all.begin() + i * page / policy.segment * width;
        fresh.entropies.assign(of_page, of_page + n_segments(std::ssize(tokens), policy) * width);
      }
      entry = &insert(key, std::move(fresh));
    }
    if (store_ != nullptr && !entry->stored) save(key, *entry);
    path.push_back(entry);
    keys.push_back(key);
    parent = key;
  }
  for (size_t i = path.size(); i-- > 0;) touch(*path[i]);
  if (store_ != nullptr) store_->touch(keys);
  shrink();
}

PrefixCache::Entry& PrefixCache::insert(Key key, Entry entry) {
  entry.tier = &device_;
  entry.bytes = std::ssize(entry.pages) * entry.pages.front()->bytes() +
                std::ssize(entry.entropies) * int64_t{sizeof(float)} +
                std::ssize(entry.tokens) * int64_t{sizeof(int32_t)};
  std::list<Key> use(1, key);
  entry.use = use.begin();
  Entry& there = entries_.emplace(key, std::move(entry)).first->second;
  device_.uses.splice(device_.uses.begin(), use);
  device_.bytes += there.bytes;
  evicted_.erase(key);
  return there;
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
                (image.asked > 0) == (key == own(chain(parent, tokens))),
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

void PrefixCache::check(const PageImage& image, const PrefillPolicy& policy, const KvShape& shape,
                        int64_t n_entropies, std::string_view where) const {
  require(image.model == model_ && image.policy == text_of(policy),
          "{}: is of another model or policy", where);
  check_pages(image, shape, where);
  const auto n_tokens = std::ssize(image.tokens);
  require(std::ssize(image.entropies) == n_segments(n_tokens, policy) * n_entropies,
          "{}: {} entropies, expected {}", where, image.entropies.size(),
          n_segments(n_tokens, policy) * n_entropies);
}

void PrefixCache::save(Key key, Entry& entry) {
  if (!store_->has(key)) {
    if (!store_->has_room(std::ssize(entry.pages) * entry.layout.bytes())) return;
    store_->put(key, entry.parent, image_of(entry));
  }
  entry.stored = true;
}

std::vector<std::byte> PrefixCache::image_of(const Entry& entry) {
  if (entry.tier == &host_) await_copies();
  const PageImage image = {.model = model_,
                           .policy = text_of(entry.policy),
                           .parent = entry.parent,
                           .asked = entry.asked,
                           .tokens = entry.tokens,
                           .entropies = entry.entropies};
  return make_image(image, backend_, entry.layout, entry.pages,
                    store_ != nullptr ? store_->spare() : std::vector<std::byte>());
}

void PrefixCache::write(std::span<const int32_t> text, const PrefillPolicy& policy, int64_t page,
                        const std::function<void(std::vector<std::byte>)>& take) {
  Key key = root(policy);
  for (int64_t at = 0; at < std::ssize(text); at += page) {
    const auto tokens = page_at(text, at, page);
    const Key next = chain(key, tokens);
    const Entry* entry = find(key, next, policy, tokens);
    if (entry == nullptr) entry = find(key, own(next), policy, tokens);
    if (entry == nullptr) return;
    take(image_of(*entry));
    key = entry->asked > 0 ? own(next) : next;
  }
}

void PrefixCache::read(const PageImage& image, std::string_view where, const PrefillPolicy& policy,
                       const KvCache& cache, const View<float, 2>& entropies, Key& parent) {
  require(image.parent == parent, "{}: a page does not follow the one before", where);
  check(image, policy, cache.shape(), entropies.dim(1), where);
  const Key next = chain(parent, image.tokens), key = image.asked > 0 ? own(next) : next;
  parent = key;
  const int64_t need = cache.shape().pages(1) * cache.page_bytes();
  if (entries_.contains(key) || device_.bytes + need > device_.max_bytes) return;  // is read again
  insert(key, {.parent = image.parent,
               .policy = policy,
               .layout = cache.shape().layout,
               .tokens = image.tokens,
               .pages = take_pages(image, backend_, cache.shape(), cache.pool()),
               .entropies = image.entropies,
               .asked = image.asked});
}

std::string PrefixCache::why_not(Key key, std::span<const int32_t> tokens, int64_t begin,
                                 const Found& part) const {
  if (entries_.empty()) return "nothing is cached yet";
  if (evicted_.contains(key) || evicted_.contains(own(key)))
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

void PrefixCache::touch(Entry& entry) {
  std::list<Key>& uses = entry.tier->uses;
  uses.splice(uses.begin(), uses, entry.use);
}

void PrefixCache::move(Entry& entry, std::vector<PageRef> to, Tier& tier) {
  std::vector<void*> there;
  std::vector<const void*> here;
  for (const PageRef& page : to) there.push_back(page->data());
  for (const PageRef& page : entry.pages) here.push_back(page->data());
  const std::vector<PageRef>& of_device = &tier == &device_ ? to : entry.pages;
  moving_.insert(moving_.end(), of_device.begin(), of_device.end());
  backend_.host_memory()->copy(there, here, entry.layout.bytes());
  entry.pages = std::move(to);
  entry.tier->bytes -= entry.bytes;
  tier.bytes += entry.bytes;
  tier.uses.splice(tier.uses.begin(), entry.tier->uses, entry.use);
  entry.tier = &tier;
}

bool PrefixCache::demote(Entry& entry) noexcept try {
  if (host_pages_ == nullptr) return false;
  const auto n = std::ssize(entry.pages);
  while (host_pages_->n_free() < n && !host_.uses.empty()) forget(host_.uses.back());
  std::vector<PageRef> pages;
  while (std::ssize(pages) < n) pages.push_back(host_pages_->take());
  move(entry, std::move(pages), host_);
  return true;
} catch (...) {
  return false;  // it is read again
}

void PrefixCache::forget(Key key) noexcept {
  const auto it = entries_.find(key);
  Entry& entry = it->second;
  try {
    if (store_ != nullptr && !entry.stored) save(key, entry);  // there was no room for it before
    if (evicted_.size() >= kMaxEvictedKnown) evicted_.clear();
    evicted_.insert(key);
  } catch (...) {  // it is read again, or nobody hears why
  }
  entry.tier->bytes -= entry.bytes;
  entry.tier->uses.erase(entry.use);
  entries_.erase(it);
}

void PrefixCache::shrink() noexcept {
  for (int64_t n_copied = 0;
       device_.bytes > device_.max_bytes && !device_.uses.empty() && n_copied < kMaxDemoted;) {
    const Key key = device_.uses.back();
    const bool demoted = demote(entries_.at(key));
    if (!demoted) forget(key);
    n_copied += demoted ? 1 : 0;
  }
}

void PrefixCache::release_copied() {
  if (!moving_.empty() && backend_.host_memory()->copied()) moving_.clear();
}

void PrefixCache::await_copies() {
  if (moving_.empty()) return;
  backend_.host_memory()->await();
  moving_.clear();
}

void PrefixCache::clear() {
  await_copies();
  entries_.clear();
  for (Tier* tier : {&device_, &host_}) {
    tier->uses.clear();
    tier->bytes = 0;
  }
  evicted_.clear();
}

}  // namespace ei
