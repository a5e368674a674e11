// Products of the tile unit (amx.h) whose second factor is a strip of 32 columns. Included once per
// instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_AMX_STRIP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_AMX_STRIP_INL_H_
#undef EI_CPU_AMX_STRIP_INL_H_
#else
#define EI_CPU_AMX_STRIP_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "ei/cpu/amx.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR
// From each eighth row on eight numbers, side by side.
template <class D>
HWY_INLINE hn::Vec<D> load_eighths(D d, const uint16_t* const* rows, int64_t from) {
  if constexpr (hn::MaxLanes(D()) == 8) {
    return hn::LoadU(d, rows[0] + from);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, load_eighths(half, rows + hn::MaxLanes(half), from),
                       load_eighths(half, rows, from));
  }
}
#endif

// kAmxRows numbers of each of kAmxDepth rows as the first factor of a product whose depth these
// rows are: to[i][k] is number i of row k.
HWY_INLINE void transpose(const uint16_t* const* rows, int64_t from, uint16_t* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < kAmxRows; ++i)
    for (int64_t k = 0; k < kAmxDepth; ++k) to[i * kAmxDepth + k] = rows[k][from + i];
#else  // eight by eight, as many of them at a time as a vector has room for
  const hn::CappedTag<uint16_t, kAmxDepth> d;
  const hn::RepartitionToWide<decltype(d)> d2;
  const hn::RepartitionToWide<decltype(d2)> d4;
  for (int64_t k = 0; k < kAmxDepth; k += static_cast<int64_t>(hn::Lanes(d)))
    for (int64_t i = 0; i < kAmxRows; i += 8) {
      hn::Vec<decltype(d2)> pairs[8];
      hn::Vec<decltype(d4)> fours[8];
      HWY_UNROLL(4)
      for (int64_t u = 0; u < 4; ++u) {
        const auto even = load_eighths(d, rows + k + 2 * u, from + i);
        const auto odd = load_eighths(d, rows + k + 2 * u + 1, from + i);
        pairs[u] = hn::BitCast(d2, hn::InterleaveLower(d, even, odd));
        pairs[4 + u] = hn::BitCast(d2, hn::InterleaveUpper(d, even, odd));
      }
      HWY_UNROLL(4)
      for (int64_t u = 0; u < 8; u += 2) {
        fours[u] = hn::BitCast(d4, hn::InterleaveLower(d2, pairs[u], pairs[u + 1]));
        fours[u + 1] = hn::BitCast(d4, hn::InterleaveUpper(d2, pairs[u], pairs[u + 1]));
      }
      // Of rows 0 to 3 and 4 to 7: numbers 0 and 1 in fours[0] and [2], 2 and 3 in [1] and [3], ...
      HWY_UNROLL(4)
      for (int64_t u = 0; u < 4; ++u) {
        const auto low = fours[u / 2 * 4 + u % 2], high = fours[u / 2 * 4 + u % 2 + 2];
        uint16_t* const at = to + (i + 2 * u) * kAmxDepth + k;
        hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d4, low, high)), d, at);
        hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d4, low, high)), d, at + kAmxDepth);
      }
    }
#endif
}

// Rows of a first factor: register k of their depth at `at` + k `step` numbers, what it lacks of
// floats `rest` behind it.
struct AmxRowsAt {
  const uint16_t* at;
  int64_t step;
  int64_t stride;  // bytes
  int64_t rest;
};

// The second factor: registers' depths behind each other, the second 16 columns `step` numbers
// behind the first and what either lacks of floats `rest` behind it.
struct AmxColumnsAt {
  const uint16_t* at;
  int64_t step;
  int64_t rest;
};

// 16 n rows, a(i) where the i-th 16 are, by the 32 columns of b. To c [16 n, 32], or added to it.
// Sums are stored while others are worked on: the unit has no room to wait for more than two.
// kHalves: of factors in two parts three products, all but that of what both lack.
template <class Unit, bool kHalves, class A>
HWY_INLINE void multiply_by_pair(int64_t n, int64_t depth, const A& a, const AmxColumnsAt& b,
                                 float* c, bool add) {
  constexpr int64_t kStride = 2 * kAmxRows * sizeof(float), kRows = 2 * kAmxRows * kAmxRows;
  const auto multiply = [&]<int kC>(std::integral_constant<int, kC>, int64_t i) HWY_ATTR {
    if (add) {
      Unit::template load<kC>(c + i * kRows, kStride);
      Unit::template load<kC + 1>(c + i * kRows + kAmxRows, kStride);
    } else {
      Unit::template zero<kC>();
      Unit::template zero<kC + 1>();
    }
    const AmxRowsAt rows = a(i);
    for (int64_t k = 0; k < depth; ++k) {
      const uint16_t *from = rows.at + k * rows.step, *column = b.at + k * kAmxTile;
      Unit::template load<4>(from, rows.stride);
      Unit::template load<6>(column, 64);
      Unit::template multiply<kC, 4, 6>();
      Unit::template load<7>(column + b.step, 64);
      Unit::template multiply<kC + 1, 4, 7>();
      if constexpr (kHalves) {
        Unit::template load<5>(from + rows.rest, rows.stride);
        Unit::template multiply<kC, 5, 6>();
        Unit::template multiply<kC + 1, 5, 7>();
        Unit::template load<6>(column + b.rest, 64);
        Unit::template multiply<kC, 4, 6>();
        Unit::template load<7>(column + b.step + b.rest, 64);
        Unit::template multiply<kC + 1, 4, 7>();
      }
    }
  };
  const auto store = [&]<int kC>(std::integral_constant<int, kC>, int64_t i) HWY_ATTR {
    Unit::template store<kC>(c + i * kRows, kStride);
    Unit::template store<kC + 1>(c + i * kRows + kAmxRows, kStride);
  };
  constexpr std::integral_constant<int, 0> kFirst;
  constexpr std::integral_constant<int, 2> kSecond;
  for (int64_t i = 0; i < n; i += 2) {
    multiply(kFirst, i);
    if (i > 0) store(kSecond, i - 1);
    if (i + 1 < n) multiply(kSecond, i + 1);
    store(kFirst, i);
  }
  if (n % 2 == 0 && n > 0) store(kSecond, n - 1);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
