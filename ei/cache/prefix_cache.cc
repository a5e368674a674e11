#include "ei/cache/prefix_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <type_traits>

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

// Of every setting: one that is added and not named here does not compile.
uint64_t hash_of(const PrefillPolicy& policy) {
  const auto& [estimate, segment, block, budget, mass, by_entropy, share, stride, threshold_len,
               dense_layers, dense_tail, rank, fusion, scale_scores, sink, local] = policy;
  const auto& [base, e_t, delta_t, alpha, max_factor, rigid_whole_prompt, max_over_heads] = budget;
  uint64_t hash = 0;
  const auto add = [&](auto... values) { ((hash = mix(hash ^ bits_of(values))), ...); };
  add(estimate, segment, block, mass, by_entropy, share, stride, threshold_len, dense_layers,
      dense_tail, rank, fusion, scale_scores, sink, local);
  add(base, e_t, delta_t, alpha, max_factor, rigid_whole_prompt, max_over_heads);
  return hash;
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
                                      const View<float, 2>& entropies) {
  const int64_t page = cache.shape().layout.rows;
  Hit hit;
  Key key = hash_of(policy);
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
  return hit;
}

void PrefixCache::remember(std::span<const int32_t> prompt, int64_t n, const PrefillPolicy& policy,
                           const KvCache& cache, const View<float, 2>& entropies) {
  const KvShape& shape = cache.shape();
  const int64_t page = shape.layout.rows, n_pages = n / page;
  const auto width = static_cast<size_t>(page / policy.segment * entropies.dim(1));
  std::vector<float> all;  // once there is something new
  Key parent = hash_of(policy);
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
      fresh.bytes = std::ssize(fresh.pages) * cache.page_bytes() +
                    std::ssize(fresh.entropies) * int64_t{sizeof(float)} +
                    std::ssize(fresh.tokens) * int64_t{sizeof(int32_t)};
      std::list<Key> use(1, key);
      fresh.use = use.begin();
      entry = &entries_.emplace(key, std::move(fresh)).first->second;
      uses_.splice(uses_.begin(), use);
      bytes_ += entry->bytes;
      evicted_.erase(key);
    }
    path.push_back(entry);
    parent = key;
  }
  for (size_t i = path.size(); i-- > 0;) uses_.splice(uses_.begin(), uses_, path[i]->use);
  shrink();
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
