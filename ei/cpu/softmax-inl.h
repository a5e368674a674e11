// Exponentials of a softmax. Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SOFTMAX_INL_H_
#undef EI_CPU_SOFTMAX_INL_H_
#else
#define EI_CPU_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using V32 = hn::Vec<F32>;

// 2^x for x <= 0 down to 2^-126; that for all x below. `polynomial` is 2^r on [-1/2, 1/2] and sets
// the error. NaN stays NaN: maxps returns its second operand if one is NaN, and none here has low
// bits that the shift would move into the exponent.
template <class P>
HWY_INLINE V32 exp2_by(const P& polynomial, V32 x) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  x = hn::Max(hn::Set(d, -126.0f), x);
  // x to the nearest integer, which then stands in the last bits.
  const V32 t = hn::Add(x, hn::Set(d, 0x1.8p23f));
  const V32 r = hn::Sub(x, hn::Sub(t, hn::Set(d, 0x1.8p23f)));
  return hn::BitCast(
      d, hn::Add(hn::BitCast(di, polynomial(r)), hn::ShiftLeft<23>(hn::BitCast(di, t))));
}
// By the polynomial of degree 4 of least relative error, below 3e-6.
HWY_INLINE V32 exp2_negative(V32 x) {
  const F32 d;
  return exp2_by(
      [&](V32 r) HWY_ATTR {
        V32 p = hn::Set(d, 0.00957010221f);
        p = hn::MulAdd(p, r, hn::Set(d, 0.0559178591f));
        p = hn::MulAdd(p, r, hn::Set(d, 0.240247443f));
        p = hn::MulAdd(p, r, hn::Set(d, 0.693121791f));
        return hn::MulAdd(p, r, hn::Set(d, 0.999999285f));
      },
      x);
}

// 2^x for x <= 0, nothing below 2^-126.
HWY_INLINE V32 exp2_or_zero(V32 x) {
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(F32(), -126.0f)), exp2_negative(x));
}

// Raises a row's maximum so far to the highest lane, if that is higher; returns what probabilities
// relative to the former are to be multiplied by.
HWY_INLINE float raise_top(V32 most, float& top) {
  const F32 d;
  if (hn::AllTrue(d, hn::Le(most, hn::Set(d, top)))) return 1;
  const float next = hn::GetLane(hn::MaxOfLanes(d, most));
  const float factor = hn::GetLane(exp2_negative(hn::Set(d, top - next)));
  top = next;
  return factor;
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
