#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/parallel.h"
#include "ei/policy/pooling.h"

namespace ei::cpu {
namespace {

// Each vote joined by f with the n - 1 others of which it is the middle, as far as there are such.
template <class F>
void join(const float* votes, int64_t n, int64_t width, float* out, const F& f) {
  std::copy_n(votes, n, out);
  for (int64_t away = 1; away <= std::min(width / 2, n - 1); ++away) {
    for (int64_t j = away; j < n; ++j) out[j] = f(out[j], votes[j - away]);
    for (int64_t j = 0; j < n - away; ++j) out[j] = f(out[j], votes[j + away]);
  }
}

void average(const float* votes, int64_t n, int64_t width, float* out) {
  join(votes, n, width, out, [](float a, float b) { return a + b; });
  for (int64_t j = 0; j < n; ++j) out[j] /= static_cast<float>(width);
}

void highest(const float* votes, int64_t n, int64_t width, float* out) {
  join(votes, n, width, out, [](float a, float b) { return a < b ? b : a; });
}

}  // namespace

void CpuBackend::run(const PoolVotes& op) {
  check(op);
  const int64_t n_heads = op.votes.dim(0), m = op.votes.dim(1);
  float* narrow = op.pooling == Pooling::kBoth ? scratch_.get<float>(n_heads * m) : nullptr;
  parallel_for(n_threads_, n_heads, [&](int64_t h) {
    const float* votes = op.votes[h].data;
    const int64_t n = op.n_votes[h];
    float* out = op.out[h].data;
    switch (op.pooling) {
      case Pooling::kNone:
        std::copy_n(votes, n, out);
        break;
      case Pooling::kAvg:
        average(votes, n, op.kernel, out);
        break;
      case Pooling::kMax:
        highest(votes, n, op.kernel, out);
        break;
      case Pooling::kBoth:
        average(votes, n, kNarrowPool, narrow + h * m);
        highest(narrow + h * m, n, op.kernel, out);
        for (int64_t j = 0; j < n; ++j) out[j] = both_pools(narrow[h * m + j], out[j]);
    }
  });
}

}  // namespace ei::cpu
