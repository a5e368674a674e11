#include "ei/ops/keep_top.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "ei/cpu/cpu_backend.h"
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
    // Ordered by one number: how high a vote is, whose bits order as it does, and then how early.
    for (int32_t j = 0; j < n; ++j) {
      const auto bits = std::bit_cast<int32_t>(votes[j] + 0.0f);
      const int32_t rank = bits < 0 ? bits ^ INT32_MAX : bits;
      order[j] = int64_t{~rank} * (int64_t{1} << 32) + j;
    }
    if (n_top > 0) std::nth_element(order, order + n_top - 1, order + n);
    for (int64_t i = 0; i < n_top; ++i) rows[i] = static_cast<int32_t>(order[i] & INT32_MAX);
    std::sort(rows, rows + n_top);
    std::iota(rows + n_top, rows + n_top + op.window, n);
    op.out.count[h] = static_cast<int32_t>(n_top + op.window);
  });
}

}  // namespace ei::cpu
