#pragma once

#include "ei/cpu/numbers.h"

namespace ei::cpu {

// What a few queries of a head make of a tile of keys.
struct VoteTile {
  static constexpr int64_t kQueries = 32;

  float p[kQueries][kTileKeys];  // 2^(score - top), 0 for keys that a query may not see
  float top[kQueries];           // the highest score in the tile; -infinity if it sees none
  float sum[kQueries];           // of p
};

}  // namespace ei::cpu
