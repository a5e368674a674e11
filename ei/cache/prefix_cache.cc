#include "ei/cache/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "ei/base/fail.h"
#include "ei/cache/prefix_key.h"
#include "ei/io/checksum.h"
#include "ei/io/json.h"
#include "ei/ops/host_memory.h"
#include "ei/policy/settings.h"

namespace ei {
namespace {

constexpr size_t kMaxEvictedKnown = 65536;

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
  for_each_setting(policy, [&](const char*, auto value) { hash = mix_key(hash ^ bits_of(value)); });
  return hash;
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
    const Key next = page_key(parent, tokens), key = its_asked > 0 ? own_key(next) : next;
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
    const Key next = page_key(key, tokens);
    const bool is_own = goes_on_own(policy, key, text, at, page);
    const Entry* entry = find(key, is_own ? own_key(next) : next, policy, tokens);
    if (entry == nullptr) return;
    take(image_of(*entry));
    key = entry->asked > 0 ? own_key(next) : next;
  }
}

void PrefixCache::read(const PageImage& image, std::string_view where, const PrefillPolicy& policy,
                       const KvCache& cache, const View<float, 2>& entropies, Key& parent) {
  require(image.parent == parent, "{}: a page does not follow the one before", where);
  check(image, policy, cache.shape(), entropies.dim(1), where);
  const Key next = page_key(parent, image.tokens), key = image.asked > 0 ? own_key(next) : next;
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
