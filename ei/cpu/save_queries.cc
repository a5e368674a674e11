#include "ei/ops/save_queries.h"

#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"

namespace ei::cpu {

void CpuBackend::run(const SaveQueries& op) {
  check(op);
  for (const SaveQueries::Entry& entry : op.entries) {
    const View<float, 2> q = rows_of(entry.q), ring = rows_of(entry.ring);
    // Older rows would only be overwritten.
    for (int64_t i = std::max<int64_t>(0, q.dim(0) - ring.dim(0)); i < q.dim(0); ++i)
      std::copy_n(q[i].data, ring.dim(1), ring[(entry.position + i) % ring.dim(0)].data);
  }
}

}  // namespace ei::cpu
