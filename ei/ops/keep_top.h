#pragma once

#include "ei/base/view.h"

namespace ei {

// The rows a compression keeps: ragged over heads.
struct Keep {
  View<int32_t, 2> rows;   // [n_heads, capacity], the first `count` ascending, distinct
  View<int32_t, 1> count;  // [n_heads]
};

// Keeps the n_top rows with the highest votes, ties to the lower row, and the last `window` rows:
// row n_votes[h] is the first of the window. A head with fewer votes keeps all it has.
struct KeepTop {
  View<const float, 2> votes;      // [n_heads, m]
  View<const int32_t, 1> n_votes;  // [n_heads]
  int64_t n_top = 0;
  int64_t window = 0;
  Keep out;  // capacity >= n_top + window
};
void check(const KeepTop& op);

}  // namespace ei
