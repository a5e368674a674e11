// Four by four numbers of 32 bits. Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_TRANSPOSE_INL_H_
#undef EI_CPU_TRANSPOSE_INL_H_
#else
#define EI_CPU_TRANSPOSE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR
// Four rows of four numbers, or as many of them side by side as vectors have room for, as four
// columns of rows that are `stride` numbers apart.
template <class T, class V>
HWY_INLINE void store_columns(V a, V b, V c, V e, int64_t stride, T* HWY_RESTRICT to) {
  const hn::DFromV<V> d;
  const hn::RepartitionToWide<decltype(d)> dd;
  const auto low = hn::BitCast(dd, hn::InterleaveLower(d, a, b));
  const auto low2 = hn::BitCast(dd, hn::InterleaveLower(d, c, e));
  const auto high = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
  const auto high2 = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, low, low2)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, low, low2)), d, to + stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, high, high2)), d, to + 2 * stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, high, high2)), d, to + 3 * stride);
}
#endif

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
