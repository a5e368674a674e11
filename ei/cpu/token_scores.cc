#include "ei/ops/token_scores.h"

#include <algorithm>
#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const TokenScores& op) {
  check(op);
  const View<float, 2> logits = rows_of(op.logits);
  parallel_for(n_threads_, op.logits.rows, [&](int64_t i) {
    const View<float, 1> row = logits[i];
    const float* top = std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const float logit : row) sum += std::exp(logit - *top);
    op.argmax[i] = static_cast<int32_t>(top - row.begin());
    op.logprob[i] = static_cast<float>(row[op.targets[i]] - *top - std::log(sum));
  });
}

}  // namespace ei::cpu
