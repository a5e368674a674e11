// Shares of attention from the products of a sketch: what is kept of them, and one exponential for
// every group of queries and block. Included once per instruction set, inside
// HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SKETCH_SHARES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SKETCH_SHARES_INL_H_
#undef EI_CPU_SKETCH_SHARES_INL_H_
#else
#define EI_CPU_SKETCH_SHARES_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>
#include <limits>

#include "ei/cpu/sketch_queries-inl.h"
#include "ei/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// What the products of a strip are kept as: whole numbers without the last `shift` bits, and what
// these stand for is the product of a query's scale and a block's. kHidden is that of a query that
// sees no key of a block; no other is as low (sketch_shift()).
struct StripLogits {
  int shift;
  const float* query_scale;  // [kStripQueries]
  const float* block_scale;
  int16_t* whole;  // [n_blocks, kStripQueries]
  float* top;      // [kStripQueries]: the highest logit of all blocks
};
constexpr int16_t kHidden = std::numeric_limits<int16_t>::min();
using I32 = hn::RebindToSigned<F32>;
using I16 = hn::Rebind<int16_t, F32>;

// What a whole number of block b stands for, for the queries from place i on.
HWY_INLINE V32 unit(const StripLogits& strip, int64_t b, int64_t i) {
  const F32 d;
  return hn::Mul(hn::LoadU(d, strip.query_scale + i), hn::Set(d, strip.block_scale[b]));
}

// x, or -infinity where `whole` is kHidden. Without kCausal none is.
template <bool kCausal>
HWY_INLINE V32 unless_hidden(hn::Vec<I32> whole, V32 x) {
  if constexpr (!kCausal) return x;
  const F32 d;
  const auto hidden = hn::RebindMask(d, hn::Lt(whole, hn::Set(I32(), kHidden + 1)));
  return hn::IfThenElse(hidden, hn::Set(d, -std::numeric_limits<float>::infinity()), x);
}

// Keeps block b's highest products.
template <bool kCausal>
HWY_INLINE void keep_products(const StripLogits& strip, int64_t b,
                              const int32_t* HWY_RESTRICT products) {
  const F32 d;
  // Stores to lines that are not in L1 would hold up those of the products behind them.
  hwy::Prefetch(strip.whole + (b + 8) * kStripQueries);
  for (int64_t i = 0; i < kStripQueries; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto whole = hn::ShiftRightSame(hn::LoadU(I32(), products + i), strip.shift);
    hn::StoreU(hn::DemoteTo(I16(), whole), I16(), strip.whole + b * kStripQueries + i);
    const V32 x =
        unless_hidden<kCausal>(whole, hn::Mul(hn::ConvertTo(d, whole), unit(strip, b, i)));
    hn::StoreU(hn::Max(x, hn::LoadU(d, strip.top + i)), d, strip.top + i);
  }
}

// The same relative to their queries' highest, in one rounding with kCausal and without it: what
// is hidden from some queries of a strip decides which is taken.
template <bool kCausal>
HWY_INLINE V32 relative_logits(const StripLogits& strip, int64_t b, int64_t i) {
  const auto whole = hn::PromoteTo(I32(), hn::LoadU(I16(), strip.whole + b * kStripQueries + i));
  const F32 d;
  return unless_hidden<kCausal>(
      whole, hn::MulSub(hn::ConvertTo(d, whole), unit(strip, b, i), hn::LoadU(d, strip.top + i)));
}

#if HWY_TARGET == HWY_SCALAR

// How many blocks of a strip are worked on at a time: their groups fill a vector.
constexpr int64_t kBlocksAtOnce = 1;

// e[b][i] = 2^x for blocks [begin, end), whole kBlocksAtOnce, and a strip's groups, with x the
// highest logit of a group's queries, each relative to its own highest. Adds them to `sums`, which
// are [kBlocksAtOnce, kStripGroups] so that it makes no difference where a range is cut.
template <bool kCausal>
void exponentials(const StripLogits& strip, int64_t begin, int64_t end, float* e, float* sums) {
  for (int64_t b = begin; b < end; ++b)
    for (int64_t i = 0; i < kStripGroups; ++i) {
      V32 most = relative_logits<kCausal>(strip, b, i);
      for (int64_t at = i + kStripGroups; at < kStripQueries; at += kStripGroups)
        most = hn::Max(most, relative_logits<kCausal>(strip, b, at));
      sums[i] += e[b * kStripGroups + i] = hn::GetLane(exp2_or_zero(most));
    }
}

#else

constexpr int64_t kBlocksAtOnce = static_cast<int64_t>(hn::MaxLanes(F32())) / kStripGroups;
static_assert(kStripGroups == 4 && kBlocksAtOnce <= 4);

// Of every 128 bits of a and b the higher of each two that are neighbours: a's and b's in turn.
HWY_INLINE V32 highest_of_neighbours(V32 a, V32 b) {
  return hn::Max(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(b), a),
                 hn::OddEvenBlocks(b, hn::SwapAdjacentBlocks(a)));
}

template <bool kCausal>
void exponentials(const StripLogits& strip, int64_t begin, int64_t end, float* HWY_RESTRICT e,
                  float* HWY_RESTRICT sums) {
  const F32 d;
  constexpr int64_t kLanes = kBlocksAtOnce * kStripGroups;
  V32 sum = hn::LoadU(d, sums);
  for (int64_t b = begin; b < end; b += kBlocksAtOnce) {
    const auto highest = [&](int64_t u) HWY_ATTR {
      V32 most = relative_logits<kCausal>(strip, b + u, 0);
      HWY_UNROLL(7)
      for (int64_t i = kLanes; i < kStripQueries; i += kLanes)
        most = hn::Max(most, relative_logits<kCausal>(strip, b + u, i));
      return most;
    };
    V32 x = highest(0);
    if constexpr (kBlocksAtOnce == 2) x = highest_of_neighbours(x, highest(1));
    if constexpr (kBlocksAtOnce == 4) {
      const auto halves = [&](V32 a, V32 c) HWY_ATTR {
        return hn::Max(hn::ConcatLowerLower(d, c, a), hn::ConcatUpperUpper(d, c, a));
      };
      x = highest_of_neighbours(halves(x, highest(2)), halves(highest(1), highest(3)));
    }
    x = exp2_or_zero(x);
    hn::StoreU(x, d, e + b * kStripGroups);
    sum = hn::Add(sum, x);
  }
  hn::StoreU(sum, d, sums);
}

#endif

// to[b] = the sum of e[b][i] over groups [first, first + count), for n blocks, with room for whole
// vectors of blocks.
HWY_INLINE void add_groups(int64_t n, const float* HWY_RESTRICT e, int64_t first, int64_t count,
                           float* HWY_RESTRICT to) {
  const F32 d;
  for (int64_t b = 0; b < n; b += static_cast<int64_t>(hn::Lanes(d))) {
    V32 of[kStripGroups];
    hn::LoadInterleaved4(d, e + b * kStripGroups, of[0], of[1], of[2], of[3]);
    V32 sum = hn::Zero(d);
    for (int64_t i = first; i < first + count; ++i) sum = hn::Add(sum, of[i]);
    hn::StoreU(sum, d, to + b);
  }
}

// to[b][i] += factor[i] e[b][i] for n blocks, a multiple of kBlocksAtOnce.
HWY_INLINE void add_scaled(int64_t n, const float* HWY_RESTRICT factor, const float* HWY_RESTRICT e,
                           float* HWY_RESTRICT to) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  float factors[kStripGroups * kBlocksAtOnce];
  for (int64_t i = 0; i < kStripGroups * kBlocksAtOnce; ++i) factors[i] = factor[i % kStripGroups];
  for (int64_t i = 0; i < n * kStripGroups; i += lanes)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, factors + i % kStripGroups), hn::LoadU(d, e + i),
                          hn::LoadU(d, to + i)),
               d, to + i);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
