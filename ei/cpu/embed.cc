#include "ei/ops/embed.h"

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const Embed& op) {
  check(op);
  const View<float, 2> out = rows_of(op.out);
  parallel_for(n_threads_, op.out.rows, [&](int64_t i) {
    const int64_t first = op.tokens[i] * op.table.cols;
    for (int64_t j = 0; j < op.table.cols; ++j)
      out[i][j] = load(op.table.data, op.table.dtype, first + j);
  });
}

}  // namespace ei::cpu
