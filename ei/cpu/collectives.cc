#include "ei/ops/collectives.h"

#include <algorithm>

#include "ei/base/communicator.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"

namespace ei::cpu {

void CpuBackend::run(const AllReduce& op) {
  const View<float, 2> x = rows_of(op.x);
  ranks_->sum({x.data, static_cast<size_t>(x.size())});
}

void CpuBackend::run(const AllGather& op) {
  const int64_t n_ranks = ranks_->size();
  check(op, ranks_->size());
  const View<float, 2> part = rows_of(op.part), out = rows_of(op.out);
  const int64_t n = part.size(), m = part.dim(1);
  float* const all = scratch_.get<float>(n_ranks * n);  // [n_ranks, rows, m]
  ranks_->gather(std::as_bytes(std::span(part.data, static_cast<size_t>(n))),
                 std::as_writable_bytes(std::span(all, static_cast<size_t>(n_ranks * n))));
  for (int64_t r = 0; r < n_ranks; ++r)
    for (int64_t i = 0; i < part.dim(0); ++i)
      std::copy_n(all + r * n + i * m, m, out[i].data + r * m);
}

}  // namespace ei::cpu
