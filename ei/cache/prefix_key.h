#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "ei/policy/prefill_policy.h"

// Keys of a prefix cache's pages: each is made of the page before and its own tokens.
namespace ei {

inline uint64_t mix_key(uint64_t z) {  // splitmix64
  z += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

inline uint64_t page_key(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = parent;
  for (const int32_t token : tokens) hash = mix_key(hash ^ static_cast<uint32_t>(token));
  return hash;
}

// Of a page that is a conversation's own, which may lie beside one that is not.
inline uint64_t own_key(uint64_t key) { return mix_key(key ^ 0x636F6E76); }

// Of the text from `at` on, what a page of it holds.
inline std::span<const int32_t> page_at(std::span<const int32_t> text, int64_t at, int64_t size) {
  return text.subspan(static_cast<size_t>(at),
                      static_cast<size_t>(std::min(size, std::ssize(text) - at)));
}

inline int64_t n_segments(int64_t n_tokens, const PrefillPolicy& policy) {
  return (n_tokens + policy.segment - 1) / policy.segment;
}

}  // namespace ei
