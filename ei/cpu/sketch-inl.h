// Logits between queries and keys in few dimensions, as whole numbers of 8 bits: what EstimateMass
// spends its time in. Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SKETCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SKETCH_INL_H_
#undef EI_CPU_SKETCH_INL_H_
#else
#define EI_CPU_SKETCH_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ei/cpu/sketch_queries-inl.h"
#include "ei/cpu/sketch_vnni-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

// The highest product of each query of the strip with n keys [n, w]. With kCausal, query i sees
// keys up to i - first; those that see none get the lowest number.
template <bool kCausal>
void highest_products(int64_t n, const uint8_t* keys, int64_t w, const StripQueries& queries,
                      int64_t first, int32_t* HWY_RESTRICT out) {
  for (int64_t i = 0; i < kStripQueries; ++i) {
    out[i] = std::numeric_limits<int32_t>::min();
    for (int64_t j = 0; j < (kCausal ? std::min(n, queries.position[i] - first + 1) : n); ++j) {
      int32_t sum = 0;
      for (int64_t k = 0; k < w; ++k)
        sum += queries.q[(k / 4 * kStripQueries + i) * 4 + k % 4] * (keys[j * w + k] - 64);
      out[i] = std::max(out[i], sum);
    }
  }
}

#else

using I32x8 = hn::CappedTag<int32_t, 8>;
using I16x16 = hn::Repartition<int16_t, I32x8>;
using I8x32 = hn::Repartition<int8_t, I32x8>;

// Of every two bytes the sum of their products, of unsigned keys and signed queries.
HWY_INLINE hn::Vec<I16x16> add_pairs(hn::Vec<I8x32> keys, hn::Vec<I8x32> queries) {
#if HWY_TARGET <= HWY_AVX2
  return hn::Vec<I16x16>{_mm256_maddubs_epi16(keys.raw, queries.raw)};
#elif HWY_TARGET <= HWY_SSSE3
  return hn::Vec<I16x16>{_mm_maddubs_epi16(keys.raw, queries.raw)};
#else
  const I16x16 d;
  const auto k = hn::BitCast(d, keys), q = hn::BitCast(d, queries);
  const auto low = hn::Mul(hn::And(k, hn::Set(d, 255)), hn::ShiftRight<8>(hn::ShiftLeft<8>(q)));
  return hn::Add(low, hn::Mul(hn::ShiftRight<8>(k), hn::ShiftRight<8>(q)));
#endif
}

// The products of kV vectors of queries with kN keys that follow each other.
template <int kV, int kN>
HWY_INLINE void multiply(const uint8_t* HWY_RESTRICT keys, int64_t w, const int8_t* HWY_RESTRICT q,
                         const int16_t* HWY_RESTRICT start, hn::Vec<I32x8> (&sums)[kN][kV]) {
  const I32x8 d32;
  const I16x16 d16;
  const I8x32 d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d32));
  const auto ones = hn::Set(d16, 1);
  for (int64_t run = 0; run * 4 * kRun < w; ++run) {
    hn::Vec<I16x16> part[kN][kV];
    for (int v = 0; v < kV; ++v) {
      const auto from = hn::LoadU(d16, start + (run * kStripQueries + v * lanes) * 2);
      HWY_UNROLL(4)
      for (int j = 0; j < kN; ++j) part[j][v] = from;
    }
    const int64_t end = std::min((run + 1) * kRun, w / 4);
    for (int64_t g = run * kRun; g < end; ++g) {
      hn::Vec<I8x32> key[kN];
      HWY_UNROLL(4)
      for (int j = 0; j < kN; ++j) {
        int32_t four;
        std::memcpy(&four, keys + j * w + 4 * g, sizeof four);
        key[j] = hn::BitCast(d8, hn::Set(d32, four));
      }
      HWY_UNROLL(4)
      for (int v = 0; v < kV; ++v) {
        const auto query = hn::LoadU(d8, q + (g * kStripQueries + v * lanes) * 4);
        HWY_UNROLL(4)
        for (int j = 0; j < kN; ++j) part[j][v] = hn::Add(part[j][v], add_pairs(key[j], query));
      }
    }
    HWY_UNROLL(4)
    for (int j = 0; j < kN; ++j) HWY_UNROLL(4)
    for (int v = 0; v < kV; ++v) {
      auto unused = hn::Zero(d32);
      const auto before = run == 0 ? hn::Zero(d32) : sums[j][v];
      sums[j][v] = hn::ReorderWidenMulAccumulate(d32, part[j][v], ones, before, unused);
    }
  }
}

// The highest product of each query of the strip with n keys [n, w]. With kCausal, query i sees
// keys up to i - first; those that see none get the lowest number.
template <bool kCausal>
void highest_products(int64_t n, const uint8_t* HWY_RESTRICT keys, int64_t w,
                      const StripQueries& queries, int64_t first, int32_t* HWY_RESTRICT out) {
#if HWY_TARGET <= HWY_AVX3
  if (has_vnni()) return highest_by_vnni<kCausal>(n, keys, w, queries, first, out);
#endif
  constexpr int kV = 4, kN = 2;
  const I32x8 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, std::numeric_limits<int32_t>::min());
  for (int64_t at = 0; at < kStripQueries; at += kV * lanes) {
    hn::Vec<I32x8> most[kV];
    for (int v = 0; v < kV; ++v) most[v] = lowest;
    const int8_t* const q = queries.q + at * 4;
    const int16_t* const start = queries.start + at * 2;
    int64_t j = 0;
    for (; j + kN <= n; j += kN) {
      hn::Vec<I32x8> sums[kN][kV];
      multiply<kV, kN>(keys + j * w, w, q, start, sums);
      HWY_UNROLL(4)
      for (int i = 0; i < kN; ++i) HWY_UNROLL(4)
      for (int v = 0; v < kV; ++v)
        most[v] = hn::Max(most[v], seen<kCausal>(d, sums[i][v], queries.position + at + v * lanes,
                                                 first + j + i));
    }
    for (; j < n; ++j) {
      hn::Vec<I32x8> sums[1][kV];
      multiply<kV, 1>(keys + j * w, w, q, start, sums);
      for (int v = 0; v < kV; ++v)
        most[v] = hn::Max(
            most[v], seen<kCausal>(d, sums[0][v], queries.position + at + v * lanes, first + j));
    }
    for (int v = 0; v < kV; ++v) hn::StoreU(most[v], d, out + at + v * lanes);
  }
}

#endif

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
