// What brings numbers into the order of the tile unit's registers (amx.h). Included once per
// instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_AMX_INL_H_
#undef EI_CPU_AMX_INL_H_
#else
#define EI_CPU_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ei/cpu/amx.h"
#include "ei/cpu/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// To nearest, ties to even; NaN stays NaN.
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> round_to_bf16(D, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  const auto nan = hn::RebindMask(du, hn::IsNaN(v));
  return hn::TruncateTo(hn::Rebind<uint16_t, D>(),
                        hn::ShiftRight<16>(hn::IfThenElse(nan, quiet, rounded)));
}

// The numbers of two vectors, the second's behind the first's.
template <class Unit, class D>
HWY_INLINE void store_rounded(D d, hn::Vec<D> first, hn::Vec<D> second, uint16_t* to) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (std::is_same_v<Unit, Amx>) {
    __m512i both;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(second.raw), "v"(first.raw));
    _mm512_storeu_si512(to, both);
    return;
  }
#endif
  const hn::Rebind<uint16_t, D> d16;
  hn::StoreU(round_to_bf16(d, first), d16, to);
  hn::StoreU(round_to_bf16(d, second), d16, to + hn::Lanes(d));
}

// n numbers in bf16, and zeros up to `width`.
template <class Unit>
HWY_INLINE void round_row(const float* HWY_RESTRICT from, int64_t n, int64_t width,
                          uint16_t* HWY_RESTRICT to) {
  const hn::CappedTag<float, 16> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + 2 * lanes <= n; c += 2 * lanes)
    store_rounded<Unit>(d, hn::LoadU(d, from + c), hn::LoadU(d, from + c + lanes), to + c);
  for (; c < n; ++c) to[c] = to_bf16(from[c]);
  for (; c < width; ++c) to[c] = 0;
}

// The same, and behind `width` numbers what they lack of floats.
HWY_INLINE void split_row(const float* HWY_RESTRICT from, int64_t n, int64_t width,
                          uint16_t* HWY_RESTRICT to) {
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const hn::RebindToUnsigned<decltype(d)> du;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + lanes <= n; c += lanes) {
    const auto x = hn::LoadU(d, from + c);
    const auto rounded = round_to_bf16(d, x);
    const auto rest = hn::Sub(x, hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, rounded))));
    hn::StoreU(rounded, d16, to + c);
    hn::StoreU(round_to_bf16(d, rest), d16, to + width + c);
  }
  for (; c < n; ++c) {
    to[c] = to_bf16(from[c]);
    to[width + c] = to_bf16(from[c] - from_bf16(to[c]));
  }
  for (; c < width; ++c) to[c] = to[width + c] = 0;
}

#if HWY_TARGET != HWY_SCALAR
// Four numbers of every fourth row, side by side.
template <class D>
HWY_INLINE hn::Vec<D> load_fours(D d, const uint16_t* const* rows, int64_t from) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::BitCast(d, hn::LoadU(hn::Repartition<uint16_t, D>(), rows[0] + from));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, load_fours(half, rows + hn::MaxLanes(half), from),
                       load_fours(half, rows, from));
  }
}
#endif

// kAmxDepth numbers of each of kAmxRows rows as the second factor of a product whose columns these
// rows are: to[k][j] is the k-th pair of the j-th row.
HWY_INLINE void pack_pairs(const uint16_t* const* rows, int64_t from, uint32_t* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t k = 0; k < kAmxRows; ++k)
    for (int64_t j = 0; j < kAmxRows; ++j)
      std::memcpy(to + k * kAmxRows + j, rows[j] + from + 2 * k, sizeof *to);
#else  // four by four, as many of them at a time as a vector has room for
  const hn::CappedTag<uint32_t, kAmxRows> d;
  HWY_UNROLL(4)
  for (int64_t j = 0; j < kAmxRows; j += hn::MaxLanes(d)) {
    const auto fours = [&](int64_t u, int64_t k)
                           HWY_ATTR { return load_fours(d, rows + j + u, from + 2 * k); };
    HWY_UNROLL(4)
    for (int64_t k = 0; k < kAmxRows; k += 4)
      store_columns<uint32_t>(fours(0, k), fours(1, k), fours(2, k), fours(3, k), kAmxRows,
                              to + k * kAmxRows + j);
  }
#endif
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
