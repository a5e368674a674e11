#pragma once

#include <span>

#include "ei/ops/tensor.h"

namespace ei {

// Remembers the last queries of sequences that have a window: the observation window (METHOD.md
// 2.1). The query of position p lands in row p % window of its sequence's ring.
struct SaveQueries {
  struct Entry {
    Act q;                 // [n, n_heads * d], n may be 0
    int64_t position = 0;  // of the first row of q
    Act ring;              // [window, n_heads * d]
  };
  std::span<const Entry> entries;  // one ring each
};
void check(const SaveQueries& op);

}  // namespace ei
