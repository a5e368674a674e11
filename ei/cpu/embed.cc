#include "ei/ops/embed.h"

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"
#include "ei/ops/weight_blocks.h"

namespace ei::cpu {

void CpuBackend::run(const Embed& op) {
  check(op);
  const View<float, 2> out = rows_of(op.out);
  parallel_for_short(n_threads_, op.out.rows, [&](int64_t i) {
    dequantize(op.table.format, op.table.row(op.tokens[i]), op.table.cols, out[i].data);
  });
}

}  // namespace ei::cpu
