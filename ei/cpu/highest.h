#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace ei::cpu {

// Index i < 2^31 of a number x among others, as one number that is the lower the higher x is and,
// of equal ones, the earlier: floats' bits order as floats do.
inline int64_t order_of(float x, int64_t i) {
  const auto bits = std::bit_cast<int32_t>(x + 0.0f);  // -0 is 0
  const int32_t rank = bits < 0 ? bits ^ INT32_MAX : bits;
  return int64_t{~rank} * (int64_t{1} << 32) + i;
}
inline int32_t index_of(int64_t order) { return static_cast<int32_t>(order & INT32_MAX); }

// The indices of the `count` highest of n numbers, of equal ones the earlier, as they follow each
// other. `order` has room for n.
inline void take_highest(const float* x, int64_t n, int64_t count, int64_t* order, int32_t* index) {
  for (int64_t i = 0; i < n; ++i) order[i] = order_of(x[i], i);
  if (count > 0) std::nth_element(order, order + count - 1, order + n);
  std::transform(order, order + count, index, index_of);
  std::sort(index, index + count);
}

}  // namespace ei::cpu
