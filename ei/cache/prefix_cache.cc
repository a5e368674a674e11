#include "ei/cache/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "ei/base/fail.h"
#include "ei/io/checksum.h"
#include "ei/io/json.h"
#include "ei/policy/settings.h"

namespace ei {
namespace {

constexpr size_t kMaxEvictedKnown = 65536;

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

// Every setting, as a file tells it.
std::string text_of(const PrefillPolicy& policy) {
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

uint64_t chain(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = parent;
  for (const int32_t token : tokens) hash = mix(hash ^ static_cast<uint32_t>(token));
  return hash;
}

std::span<const int32_t> page_of(std::span<const int32_t> prompt, int64_t i, int64_t size) {
  return prompt.subspan(static_cast<size_t>(i * size), static_cast<size_t>(size));
}

}  // namespace

PrefixCache::Key PrefixCache::root(const PrefillPolicy& policy) const {
  return hash_of(policy) ^ checksum(std::as_bytes(std::span(model_)));
}

PrefixCache::Entry* PrefixCache::find(Key parent, Key key, const PrefillPolicy& policy,
                                      std::span<const int32_t> tokens) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return nullptr;
  Entry& entry = it->second;
  const bool same =
      entry.parent == parent && entry.policy == policy && std::ranges::equal(entry.tokens, tokens);
  return same ? &entry : nullptr;
}

PrefixCache::Hit PrefixCache::restore(std::span<const int32_t> prompt, int64_t limit,
                                      const PrefillPolicy& policy, KvCache& cache,
                                      const View<float, 2>& entropies, int64_t max_loads) {
  const int64_t page = cache.shape().layout.rows;
  const int64_t n_entropies = page / policy.segment * entropies.dim(1);
  Hit hit;
  Key key = root(policy);
  std::vector<Entry*> found;
  const int64_t n_there = cache.n_tokens();
  while (hit.n_tokens + page <= limit) {
    const auto tokens = page_of(prompt, hit.n_tokens / page, page);
    const Key next = chain(key, tokens);
    if (hit.n_tokens < n_there) {
      key = next;
      hit.n_tokens += page;
      continue;
    }
    Entry* entry = find(key, next, policy, tokens);
    if (entry == nullptr && store_ != nullptr && store_->has(next)) {
      hit.more = max_loads-- <= 0;
      if (hit.more) break;
      entry = load(key, next, policy, tokens, cache, n_entropies);
      if (entry != nullptr) hit.n_loaded += page;
    }
    if (entry == nullptr) {
      hit.stopped_by = why_not(key, next, tokens, hit.n_tokens);
      break;
    }
    found.push_back(entry);
    key = next;
    hit.n_tokens += page;
  }
  if (found.empty()) return hit;

  std::vector<std::span<const PageRef>> pages;
  std::vector<float> all;
  for (const Entry* entry : found) {
    pages.push_back(entry->pages);
    all.insert(all.end(), entry->entropies.begin(), entry->entropies.end());
  }
  float* const to = entropies.data + n_there / policy.segment * entropies.dim(1);
  backend_.copy_in(to, all.data(), std::ssize(all) * int64_t{sizeof(float)});
  cache.adopt(pages);
  for (size_t i = found.size(); i-- > 0;) uses_.splice(uses_.begin(), uses_, found[i]->use);
  shrink();  // what was loaded
  return hit;
}

void PrefixCache::remember(std::span<const int32_t> prompt, int64_t n, const PrefillPolicy& policy,
                           const KvCache& cache, const View<float, 2>& entropies) {
  const KvShape& shape = cache.shape();
  const int64_t page = shape.layout.rows, n_pages = n / page;
  const auto width = static_cast<size_t>(page / policy.segment * entropies.dim(1));
  std::vector<float> all;  // once there is something new
  Key parent = root(policy);
  std::vector<Key> keys;
  std::vector<Entry*> path;
  for (int64_t i = 0; i < n_pages; ++i) {
    const auto tokens = page_of(prompt, i, page);
    const Key key = chain(parent, tokens);
    Entry* entry = find(parent, key, policy, tokens);
    if (entry == nullptr) {
      if (entries_.contains(key)) break;  // another text or policy of the same hash
      if (all.empty() && width > 0) {
        all.resize(static_cast<size_t>(n_pages) * width);
        backend_.copy_out(all.data(), entropies.data, std::ssize(all) * int64_t{sizeof(float)});
      }
      Entry fresh;
      fresh.parent = parent;
      fresh.policy = policy;
      fresh.tokens.assign(tokens.begin(), tokens.end());
      for (int l = 0; l < shape.n_layers; ++l)
        for (int64_t h = 0; h < shape.n_kv_heads; ++h) fresh.pages.push_back(cache.page(l, h, i));
      const auto of_page = all.begin() + i * std::ssize(all) / n_pages;
      fresh.entropies.assign(of_page, of_page + static_cast<int64_t>(width));
      entry = &insert(key, std::move(fresh), cache.page_bytes());
    }
    if (store_ != nullptr && !entry->stored) save(key, *entry, shape);
    path.push_back(entry);
    keys.push_back(key);
    parent = key;
  }
  for (size_t i = path.size(); i-- > 0;) uses_.splice(uses_.begin(), uses_, path[i]->use);
  if (store_ != nullptr) store_->touch(keys);
  shrink();
}

PrefixCache::Entry& PrefixCache::insert(Key key, Entry entry, int64_t page_bytes) {
  entry.bytes = std::ssize(entry.pages) * page_bytes +
                std::ssize(entry.entropies) * int64_t{sizeof(float)} +
                std::ssize(entry.tokens) * int64_t{sizeof(int32_t)};
  std::list<Key> use(1, key);
  entry.use = use.begin();
  Entry& there = entries_.emplace(key, std::move(entry)).first->second;
  uses_.splice(uses_.begin(), use);
  bytes_ += there.bytes;
  evicted_.erase(key);
  return there;
}

PrefixCache::Entry* PrefixCache::load(Key parent, Key key, const PrefillPolicy& policy,
                                      std::span<const int32_t> tokens, const KvCache& cache,
                                      int64_t n_entropies) {
  const std::vector<std::byte> bytes = store_->get(key);
  if (bytes.empty() || entries_.contains(key)) return nullptr;
  const std::string where = store_->path(key).string();
  PageImage image;
  try {
    image = parse_image(bytes, where);
    require(image.model == model_ && image.policy == text_of(policy) && image.parent == parent &&
                std::ranges::equal(image.tokens, tokens) &&
                std::ssize(image.entropies) == n_entropies,
            "{}: is of another text, model or policy", where);
    check_pages(image, cache.shape(), where);
  } catch (const Error& error) {
    store_->discard(key, error.what());
    return nullptr;
  }
  Entry entry;
  entry.parent = parent;
  entry.policy = policy;
  entry.pages = take_pages(image, backend_, cache.shape(), cache.pool());
  entry.tokens = std::move(image.tokens);
  entry.entropies = std::move(image.entropies);
  entry.stored = true;
  return &insert(key, std::move(entry), cache.page_bytes());
}

void PrefixCache::save(Key key, Entry& entry, const KvShape& shape) {
  if (!store_->has(key)) {
    if (!store_->has_room(std::ssize(entry.pages) * shape.layout.bytes())) return;
    const PageImage image = {.model = model_,
                             .policy = text_of(entry.policy),
                             .parent = entry.parent,
                             .tokens = entry.tokens,
                             .entropies = entry.entropies};
    store_->put(key, entry.parent, make_image(image, backend_, shape, entry.pages));
  }
  entry.stored = true;
}

std::string PrefixCache::why_not(Key parent, Key key, std::span<const int32_t> tokens,
                                 int64_t begin) {
  if (entries_.empty()) return "nothing is cached yet";
  if (evicted_.contains(key)) return fmt::format("evicted from token {} on", begin);
  size_t common = 0;
  for (const auto& [k, entry] : entries_) {
    if (entry.parent != parent) continue;
    const auto differ = std::ranges::mismatch(entry.tokens, tokens);
    common = std::max(common, static_cast<size_t>(differ.in1 - entry.tokens.begin()));
  }
  if (common > 0)
    return fmt::format("the text differs from token {} on", begin + static_cast<int64_t>(common));
  if (begin > 0) return fmt::format("the text was cached up to token {}", begin);
  for (const auto& [k, entry] : entries_)
    if (std::ranges::equal(entry.tokens, tokens)) return "it was read under another policy";
  return "the text is new";
}

void PrefixCache::shrink() {
  while (bytes_ > max_bytes_ && !uses_.empty()) {
    const Key key = uses_.back();
    uses_.pop_back();
    bytes_ -= entries_.at(key).bytes;
    entries_.erase(key);
    if (evicted_.size() >= kMaxEvictedKnown) evicted_.clear();
    evicted_.insert(key);
  }
}

void PrefixCache::clear() {
  entries_.clear();
  uses_.clear();
  evicted_.clear();
  bytes_ = 0;
}

}  // namespace ei
