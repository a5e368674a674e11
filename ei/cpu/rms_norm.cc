#include "ei/ops/rms_norm.h"

#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/rms_norm.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// `to` may be `from`.
void norm_row(const float* from, const float* weight, float eps, int64_t width, float* to) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V32 sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  int64_t j = 0;
  for (; j + 4 * lanes <= width; j += 4 * lanes) {
    HWY_UNROLL(4)
    for (int u = 0; u < 4; ++u) {
      const V32 x = hn::LoadU(d, from + j + u * lanes);
      sums[u] = hn::MulAdd(x, x, sums[u]);
    }
  }
  const V32 total = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  float sum = hn::GetLane(hn::SumOfLanes(d, total));
  for (; j < width; ++j) sum += from[j] * from[j];

  const float factor = 1 / std::sqrt(sum / static_cast<float>(width) + eps);
  const V32 factors = hn::Set(d, factor);
  for (j = 0; j + lanes <= width; j += lanes)
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, from + j), factors), hn::LoadU(d, weight + j)), d,
               to + j);
  for (; j < width; ++j) to[j] = from[j] * factor * weight[j];
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(norm_row);

}  // namespace

void CpuBackend::run(const RmsNorm& op) {
  check(op);
  const View<float, 2> x = rows_of(op.x), out = rows_of(op.out);
  parallel_for_short(n_threads_, op.x.rows, [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(norm_row)(x[i].data, op.weight.data, op.eps, op.x.cols, out[i].data);
  });
}

}  // namespace ei::cpu
#endif
