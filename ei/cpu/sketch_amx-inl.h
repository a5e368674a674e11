// The products of a sketch by the tile unit (amx.h), which multiplies bytes as well. Included once
// per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SKETCH_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SKETCH_AMX_INL_H_
#undef EI_CPU_SKETCH_AMX_INL_H_
#else
#define EI_CPU_SKETCH_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ei/cpu/amx.h"
#include "ei/cpu/sketch_queries-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Blocks and dimensions that fit registers.
constexpr bool fits_tiles(int64_t block, int64_t w) {
  return block == kAmxRows && w <= kAmxRowBytes;
}

// take(b, highest) for blocks [0, n) of kAmxRows keys [n * kAmxRows, w], w <= kAmxRowBytes: the
// highest product of each query of the strip with a block's keys, as highest_products() has it.
// Where the unit is emulated, kAmxRowBytes of a key are read and meet zeros.
template <class Unit, class Take>
void highest_by_tiles(int64_t n, const uint8_t* keys, int64_t w, const StripQueries& strip,
                      const Take& take) {
  constexpr int64_t kStride = 4 * kStripQueries, kSums = kAmxRows * kStripQueries;
  alignas(64) int8_t queries[kAmxRows * kStride] = {};
  std::copy_n(strip.q, w * kStripQueries, queries);
  // What the 64 on top of each key adds, from the queries: it is the same for all keys.
  alignas(64) int32_t start[kStripQueries] = {};
  for (int64_t i = 0; i < w * kStripQueries; ++i) start[i / 4 % kStripQueries] -= 64 * queries[i];

  // Two registers hold a block's sums. They are stored when the block after the next one needs the
  // registers, as a store that waits for a product keeps others waiting, and are looked at another
  // two later.
  constexpr int64_t kBlocks = 4;
  alignas(64) int32_t sums[kBlocks][kSums];
  const auto step = [&]<int kC>(std::integral_constant<int, kC>, int64_t b) HWY_ATTR {
    int32_t* const to = sums[(b + kBlocks - 2) % kBlocks];  // of block b - 2
    if (b < n) Unit::template load<4>(keys + b * kAmxRows * w, w);
    if (b >= 2) Unit::template store<kC>(to, kStride);
    if (b < n) {
      Unit::template zero<kC>();
      Unit::template multiply_bytes<kC, 4, 6>();
    }
    if (b >= 2) Unit::template store<kC + 1>(to + kAmxRows, kStride);
    if (b < n) {
      Unit::template zero<kC + 1>();
      Unit::template multiply_bytes<kC + 1, 4, 7>();
    }
  };
  const auto look = [&](int64_t b) HWY_ATTR {
    const hn::CappedTag<int32_t, 16> d;
    alignas(64) int32_t highest[kStripQueries];
    for (int64_t c = 0; c < kStripQueries; c += static_cast<int64_t>(hn::Lanes(d))) {
      const int32_t* const from = sums[b % kBlocks] + c;
      auto most = hn::Load(d, from), other = hn::Load(d, from + kStripQueries);
      HWY_UNROLL(7)
      for (int64_t j = 2; j < kAmxRows; j += 2) {
        most = hn::Max(most, hn::Load(d, from + j * kStripQueries));
        other = hn::Max(other, hn::Load(d, from + (j + 1) * kStripQueries));
      }
      hn::Store(hn::Add(hn::Max(most, other), hn::Load(d, start + c)), d, highest + c);
    }
    take(b, highest);
  };
  Unit::begin(w);
  Unit::template load<6>(queries, kStride);
  Unit::template load<7>(queries + kAmxRowBytes, kStride);
  for (int64_t b = 0; b < n + kBlocks; ++b) {
    if (b < n + 2) {
      if (b % 2 == 0) step(std::integral_constant<int, 0>(), b);
      if (b % 2 != 0) step(std::integral_constant<int, 2>(), b);
    }
    if (b >= kBlocks) look(b - kBlocks);
  }
  Unit::end();
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
