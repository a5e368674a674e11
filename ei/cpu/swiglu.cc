#include "ei/ops/swiglu.h"

#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const SwiGlu& op) {
  check(op);
  const View<float, 2> gate = rows_of(op.gate), up = rows_of(op.up), out = rows_of(op.out);
  parallel_for(n_threads_, op.gate.rows, [&](int64_t i) {
    for (int64_t j = 0; j < op.gate.cols; ++j)
      out[i][j] = gate[i][j] / (1 + std::exp(-gate[i][j])) * up[i][j];
  });
}

}  // namespace ei::cpu
