#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const PoolVotes& op) {
  check(op);
  parallel_for(n_threads_, op.votes.dim(0), [&](int64_t h) {
    const float* votes = op.votes[h].data;
    float* out = op.out[h].data;
    const int64_t n = op.n_votes[h], reach = op.pooling == Pooling::kNone ? 0 : op.kernel / 2;
    for (int64_t j = 0; j < n; ++j) {
      const float* begin = votes + std::max<int64_t>(0, j - reach);
      const float* end = votes + std::min(n, j + reach + 1);
      if (op.pooling == Pooling::kAvg) {
        float sum = 0;
        for (const float* vote = begin; vote != end; ++vote) sum += *vote;
        out[j] = sum / static_cast<float>(op.kernel);
      } else {
        out[j] = *std::max_element(begin, end);
      }
    }
  });
}

}  // namespace ei::cpu
