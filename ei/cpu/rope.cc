#include "ei/ops/rope.h"

#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

template <bool kInterleaved>
void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    float& first = head[kInterleaved ? 2 * j : j];
    float& second = head[kInterleaved ? 2 * j + 1 : j + half];
    const float a = first, b = second;
    first = a * cos[j] - b * sin[j];
    second = b * cos[j] + a * sin[j];
  }
}

}  // namespace

void CpuBackend::run(const RopeAngles& op) {
  check(op);
  parallel_for_short(n_threads_, op.positions.dim(0), [&](int64_t i) {
    for (int64_t j = 0; j < op.inv_freq.dim(0); ++j) {
      const float angle = static_cast<float>(op.positions[i]) * op.inv_freq[j];
      op.cos[i][j] = static_cast<float>(std::cos(static_cast<double>(angle)) * op.scale);
      op.sin[i][j] = static_cast<float>(std::sin(static_cast<double>(angle)) * op.scale);
    }
  });
}

void CpuBackend::run(const Rope& op) {
  check(op);
  const View<float, 2> x = rows_of(op.x);
  const int64_t half = op.cos.dim(1);
  parallel_for_short(n_threads_, op.x.rows, [&](int64_t i) {
    for (float* head = x[i].begin(); head != x[i].end(); head += 2 * half)
      op.interleaved ? rotate<true>(head, op.cos[i].data, op.sin[i].data, half)
                     : rotate<false>(head, op.cos[i].data, op.sin[i].data, half);
  });
}

}  // namespace ei::cpu
