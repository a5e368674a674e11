#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace ei {

// Of bytes that this program wrote, to see damage: every bit of them and their number count, but
// whoever wants other bytes of the same checksum finds some. Four sums side by side, as fast as
// memory is read.
inline uint64_t checksum(std::span<const std::byte> bytes) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15ull;
  uint64_t sums[4] = {1, 2, 3, 4};
  const auto add = [&](const std::byte* at, size_t n) {
    uint64_t words[4] = {};
    std::memcpy(words, at, n);
    for (int i = 0; i < 4; ++i) sums[i] = std::rotl((sums[i] ^ words[i]) * kOdd, 29);
  };
  size_t done = 0;
  for (; done + 32 <= bytes.size(); done += 32) add(bytes.data() + done, 32);
  if (done < bytes.size()) add(bytes.data() + done, bytes.size() - done);
  uint64_t all = bytes.size();
  for (const uint64_t sum : sums) all = std::rotl((all ^ sum) * kOdd, 29);
  return all ^ (all >> 32);
}

}  // namespace ei
