#pragma once

#include <cstdint>

#include "ei/base/view.h"

namespace ei {

// Pooling::kBoth: a vote is pooled by the average of so many around it,
inline constexpr int64_t kNarrowPool = 5;
// and by so much of the highest such average in a wide pool, whichever is more: the first follows
// the text, the second keeps what stands beside rows that are asked for, such as the rest of a
// number (METHOD.md section 2). Of the averages, as a single row that all look at says little.
inline constexpr float kWideShare = 0.5f;

EI_HOST_DEVICE inline float both_pools(float narrow_average, float wide_maximum) {
  const float wide = kWideShare * wide_maximum;
  return narrow_average > wide ? narrow_average : wide;
}

}  // namespace ei
