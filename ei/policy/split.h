#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace ei {

// StreamingLLM's attention sinks: the first rows, which are always kept.
inline constexpr int64_t kStreamingSinks = 4;

// AdaKV: rows beside the window that a head may keep, when n_won of the layer's highest votes are
// its own and an even split would give it n_even. Sums over the heads to the layer's budget but for
// rounding; floor 1 is the even split.
inline int64_t adaptive_capacity(int64_t n_won, int64_t n_even, float floor) {
  return std::llround(double(n_won) * (1 - double(floor)) + double(n_even) * double(floor));
}

// PyramidKV: rows beside the window for heads of one layer, where an even split would give n_even:
// an arithmetic sequence from the first layer to the last, which gets n_even / beta. No layer gets
// more than the n_most rows there are. Sums over the layers to n_layers * n_even.
inline int64_t pyramid_capacity(int64_t layer, int64_t n_layers, int64_t n_even, int64_t n_most,
                                int64_t beta) {
  if (2 * layer + 1 == n_layers) return n_even;
  const int64_t most = std::min(2 * n_even - n_even / beta, std::max(n_most, n_even));
  // Layers that are as far from the middle get as much more and less than n_even: no rounding.
  const int64_t from_edge = std::min(layer, n_layers - 1 - layer);
  const int64_t more = most - n_even - 2 * (most - n_even) * from_edge / (n_layers - 1);
  return 2 * layer < n_layers ? n_even + more : n_even - more;
}

}  // namespace ei
