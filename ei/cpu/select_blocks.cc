#include "ei/ops/select_blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/highest.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

void to_probability(float* score, int64_t n) {
  const float top = *std::max_element(score, score + n);
  float sum = 0;
  for (int64_t b = 0; b < n; ++b) sum += score[b] = std::exp(score[b] - top);
  for (int64_t b = 0; b < n; ++b) score[b] /= sum;
}

}  // namespace

void CpuBackend::run(const SelectBlocks& op) {
  check(op);
  const int64_t n_segments = op.blocks.dim(1), n = op.blocks.size();
  const int64_t width = op.score.dim(2);
  int64_t* orders = scratch_.get<int64_t>(n * width + (n * width + 1) / 2);
  auto* ranks = reinterpret_cast<float*>(orders + n * width);
  parallel_for(n_threads_, n, [&](int64_t task) {
    const int64_t h = task / n_segments, i = task % n_segments;
    const int64_t past = (op.first_segment + i) * op.segment / op.block;
    const int32_t count = op.blocks[h][i];
    op.out.count[h][i] = count;
    if (count <= 0) return;
    float* rank = ranks + task * width;
    std::copy_n(op.score[h][i].data, past, rank);
    if (op.rank == Rank::kProbability) to_probability(rank, past);
    const float always = std::numeric_limits<float>::infinity();
    std::fill_n(rank, std::min(op.sink_blocks, past), always);
    std::fill(rank + std::max<int64_t>(0, past - op.recent_blocks), rank + past, always);

    take_highest(rank, past, count, orders + task * width, op.out.index[h][i].data);
  });
}

}  // namespace ei::cpu
