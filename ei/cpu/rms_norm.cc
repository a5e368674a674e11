#include "ei/ops/rms_norm.h"

#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const RmsNorm& op) {
  check(op);
  const View<float, 2> x = rows_of(op.x), out = rows_of(op.out);
  const int64_t width = op.x.cols;
  parallel_for(n_threads_, op.x.rows, [&](int64_t i) {
    const float *from = x[i].data, *weight = op.weight.data;
    float* to = out[i].data;
    float sum = 0;
    for (int64_t j = 0; j < width; ++j) sum += from[j] * from[j];
    const float factor = 1 / std::sqrt(sum / static_cast<float>(width) + op.eps);
    for (int64_t j = 0; j < width; ++j) to[j] = from[j] * factor * weight[j];
  });
}

}  // namespace ei::cpu
