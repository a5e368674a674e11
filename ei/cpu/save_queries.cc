#include "ei/ops/save_queries.h"

#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"

namespace ei::cpu {

void CpuBackend::run(const SaveQueries& op) {
  check(op);
  const View<float, 2> q = rows_of(op.q);
  const int64_t share = op.q.rows / std::ssize(op.rings);
  for (size_t s = 0; s < op.rings.size(); ++s) {
    const View<float, 2> ring = rows_of(op.rings[s]);
    const int64_t first = static_cast<int64_t>(s) * share;
    // Older rows would only be overwritten.
    for (int64_t i = std::max<int64_t>(0, share - ring.dim(0)); i < share; ++i)
      std::copy_n(q[first + i].data, ring.dim(1), ring[(op.positions[s] + i) % ring.dim(0)].data);
  }
}

}  // namespace ei::cpu
