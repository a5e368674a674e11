#pragma once

#include <span>

#include "ei/ops/tensor.h"

namespace ei {

// Remembers the last queries of each sequence: the observation window (METHOD.md 2.1). The rows go
// to the rings in equal shares; the query of position p lands in row p % window.
struct SaveQueries {
  Act q;                               // [n, n_heads * d]
  std::span<const Act> rings;          // [n_sequences], each [window, n_heads * d]
  std::span<const int64_t> positions;  // [n_sequences] of each sequence's first row
};
void check(const SaveQueries& op);

}  // namespace ei
