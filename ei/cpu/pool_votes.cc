#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/parallel.h"
#include "ei/policy/pooling.h"

namespace ei::cpu {
namespace {

struct Votes {
  const float* votes;
  int64_t n;

  const float* begin(int64_t j, int64_t width) const {
    return votes + std::max<int64_t>(0, j - width / 2);
  }
  const float* end(int64_t j, int64_t width) const {
    return votes + std::min(n, j + width / 2 + 1);
  }
  float average(int64_t j, int64_t width) const {
    float sum = 0;
    for (const float* vote = begin(j, width); vote != end(j, width); ++vote) sum += *vote;
    return sum / static_cast<float>(width);
  }
  float highest(int64_t j, int64_t width) const {
    return *std::max_element(begin(j, width), end(j, width));
  }
};

}  // namespace

void CpuBackend::run(const PoolVotes& op) {
  check(op);
  parallel_for(n_threads_, op.votes.dim(0), [&](int64_t h) {
    const Votes votes = {op.votes[h].data, op.n_votes[h]};
    float* out = op.out[h].data;
    for (int64_t j = 0; j < votes.n; ++j) {
      switch (op.pooling) {
        case Pooling::kNone:
          out[j] = votes.votes[j];
          break;
        case Pooling::kAvg:
          out[j] = votes.average(j, op.kernel);
          break;
        case Pooling::kMax:
          out[j] = votes.highest(j, op.kernel);
          break;
        case Pooling::kBoth:
          out[j] = both_pools(votes.average(j, kNarrowPool), votes.highest(j, op.kernel));
      }
    }
  });
}

}  // namespace ei::cpu
