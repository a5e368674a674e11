#include "ei/ops/swiglu.h"

#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/swiglu.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// gate / (1 + e^-gate) * up, by e^-|gate|, which does not overflow.
HWY_INLINE V32 swiglu(V32 gate, V32 up) {
  const F32 d;
  const V32 one = hn::Set(d, 1.0f);
  gate = hn::Max(hn::Set(d, -87.0f), gate);  // silu is 0 below, the exponential no longer
  const V32 e = exp2_negative(hn::Mul(hn::Abs(gate), hn::Set(d, -1.44269504f)));
  const V32 upper = hn::IfThenElse(hn::Ge(gate, hn::Zero(d)), one, e);
  return hn::Mul(hn::Mul(gate, hn::Div(upper, hn::Add(one, e))), up);
}

// `out` may be `gate`.
void swiglu_run(const float* gate, const float* up, int64_t n, float* out) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(swiglu(hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, out + i);
  if (i == n) return;
  float last[2][hn::MaxLanes(F32())] = {};
  std::copy(gate + i, gate + n, last[0]);
  std::copy(up + i, up + n, last[1]);
  hn::StoreU(swiglu(hn::LoadU(d, last[0]), hn::LoadU(d, last[1])), d, last[0]);
  std::copy_n(last[0], n - i, out + i);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(swiglu_run);

constexpr int64_t kRun = 16 * 1024;  // numbers a thread takes at a time

}  // namespace

void CpuBackend::run(const SwiGlu& op) {
  check(op);
  const float *gate = rows_of(op.gate).data, *up = rows_of(op.up).data;
  float* out = rows_of(op.out).data;
  const int64_t n = op.gate.rows * op.gate.cols;
  parallel_for(n_threads_, (n + kRun - 1) / kRun, [&](int64_t i) {
    const int64_t at = i * kRun;
    HWY_DYNAMIC_DISPATCH(swiglu_run)(gate + at, up + at, std::min(kRun, n - at), out + at);
  });
}

}  // namespace ei::cpu
#endif
