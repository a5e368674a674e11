#include "ei/cache/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>

namespace ei {
namespace {

constexpr size_t kMaxEvictedKnown = 65536;

uint64_t mix(uint64_t z) {  // splitmix64
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

uint64_t chain(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = parent;
  for (const int32_t token : tokens) hash = mix(hash ^ static_cast<uint32_t>(token));
  return hash;
}

std::span<const int32_t> segment_of(std::span<const int32_t> prompt, int64_t i, int64_t size) {
  return prompt.subspan(static_cast<size_t>(i * size), static_cast<size_t>(size));
}

}  // namespace

PrefixCache::Key PrefixCache::root(const PrefillPolicy& policy) {
  const auto it = std::find(policies_.begin(), policies_.end(), policy);
  const auto index = static_cast<uint64_t>(it - policies_.begin());
  if (it == policies_.end()) policies_.push_back(policy);
  return mix(index);
}

PrefixCache::Entry* PrefixCache::find(Key parent, Key key, std::span<const int32_t> tokens) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return nullptr;
  Entry& entry = it->second;
  return entry.parent == parent && std::ranges::equal(entry.tokens, tokens) ? &entry : nullptr;
}

PrefixCache::Hit PrefixCache::restore(std::span<const int32_t> prompt, int64_t limit,
                                      const PrefillPolicy& policy, KvCache& cache,
                                      Entropies entropies) {
  const int64_t segment = policy.segment;
  Hit hit;
  Key key = root(policy);
  std::vector<std::pair<Key, Entry*>> found;
  while (hit.n_tokens + segment <= limit) {
    const auto tokens = segment_of(prompt, hit.n_tokens / segment, segment);
    const Key next = chain(key, tokens);
    Entry* entry = find(key, next, tokens);
    if (entry == nullptr) {
      hit.stopped_by = why_not(key, next, tokens, hit.n_tokens);
      break;
    }
    found.push_back({next, entry});
    key = next;
    hit.n_tokens += segment;
  }
  if (found.empty()) return hit;

  std::vector<std::vector<PageRef>> pages;
  for (const auto& [k, entry] : found) pages.push_back(entry->pages);
  cache.adopt(pages);
  for (size_t i = 0; i < found.size(); ++i)
    copy(Copy::kRestore, *found[i].second, static_cast<int64_t>(i), cache, entropies);
  for (size_t i = found.size(); i-- > 0;) uses_.splice(uses_.begin(), uses_, found[i].second->use);
  return hit;
}

void PrefixCache::remember(std::span<const int32_t> prompt, int64_t n, const PrefillPolicy& policy,
                           const KvCache& cache, Entropies entropies) {
  const int64_t segment = policy.segment;
  const KvShape& shape = cache.shape();
  Key parent = root(policy);
  std::vector<Entry*> path;
  for (int64_t i = 0; i < n / segment; ++i) {
    const auto tokens = segment_of(prompt, i, segment);
    const Key key = chain(parent, tokens);
    Entry* entry = find(parent, key, tokens);
    if (entry == nullptr) {
      if (entries_.contains(key)) break;  // another text of the same hash
      Entry fresh;
      fresh.parent = parent;
      fresh.tokens.assign(tokens.begin(), tokens.end());
      for (int l = 0; l < shape.n_layers; ++l)
        for (int64_t h = 0; h < shape.n_kv_heads; ++h) fresh.pages.push_back(cache.page(l, h, i));
      copy(Copy::kSave, fresh, i, cache, entropies);
      fresh.bytes = static_cast<int64_t>(fresh.pages.size()) * shape.page_bytes() +
                    static_cast<int64_t>(
                        (fresh.bounds_min.size() + fresh.bounds_max.size() + fresh.entropy.size()) *
                            sizeof(float) +
                        fresh.tokens.size() * sizeof(int32_t));
      bytes_ += fresh.bytes;
      evicted_.erase(key);
      fresh.use = uses_.insert(uses_.begin(), key);
      entry = &entries_.emplace(key, std::move(fresh)).first->second;
    }
    path.push_back(entry);
    parent = key;
  }
  for (size_t i = path.size(); i-- > 0;) uses_.splice(uses_.begin(), uses_, path[i]->use);
  shrink();
}

void PrefixCache::copy(Copy direction, Entry& entry, int64_t segment, const KvCache& cache,
                       Entropies entropies) {
  const KvShape& shape = cache.shape();
  const auto move = [&](std::vector<float>& host, size_t at, float* device, int64_t n) {
    const int64_t n_bytes = n * int64_t{sizeof(float)};
    if (direction == Copy::kRestore) return backend_.copy_in(device, host.data() + at, n_bytes);
    host.resize(std::max(host.size(), at + static_cast<size_t>(n)));
    backend_.copy_out(host.data() + at, device, n_bytes);
  };
  for (int l = 0; l < shape.n_layers; ++l) {
    const KeyBounds bounds = cache.bounds(l);
    const View<float, 2>& entropy = entropies[static_cast<size_t>(l)];
    for (int64_t h = 0; h < shape.n_kv_heads; ++h) {
      const auto head = static_cast<size_t>(l * shape.n_kv_heads + h);
      if (entropy.size() > 0) move(entry.entropy, head, &entropy[h][segment], 1);
      if (bounds.block == 0) continue;
      const int64_t blocks = shape.page_rows / shape.block;
      const int64_t n = blocks * shape.head_dim;
      const size_t at = head * static_cast<size_t>(n);
      move(entry.bounds_min, at, bounds.min[h][segment * blocks].data, n);
      move(entry.bounds_max, at, bounds.max[h][segment * blocks].data, n);
    }
  }
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
