#include "ei/ops/keep_top.h"

#include <algorithm>
#include <numeric>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/highest.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const KeepTop& op) {
  check(op);
  const int64_t n_heads = op.votes.dim(0), m = op.votes.dim(1);
  int64_t* orders = scratch_.get<int64_t>(n_heads * m);
  parallel_for(n_threads_, n_heads, [&](int64_t h) {
    const int32_t n = op.n_votes[h];
    const int64_t n_top = std::min<int64_t>(op.n_top, n);
    const float* votes = op.votes[h].data;
    int64_t* order = orders + h * m;
    int32_t* rows = op.out.rows[h].data;
    take_highest(votes, n, n_top, order, rows);
    std::iota(rows + n_top, rows + n_top + op.window, n);
    op.out.count[h] = static_cast<int32_t>(n_top + op.window);
  });
}

}  // namespace ei::cpu
