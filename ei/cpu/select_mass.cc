#include "ei/ops/select_mass.h"

#include <algorithm>
#include <bit>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

// The past blocks of one segment that are kept, ascending, to `index`; `order` has room for all.
int32_t select(const SelectMass& op, int64_t past_tokens, const float* mass, float own,
               int64_t* order, int32_t* index) {
  const int64_t past = past_tokens / op.block;
  const int64_t sink = std::min(past, (op.sink + op.block - 1) / op.block);
  const int64_t local = std::max(sink, past - std::min(past, (op.local + op.block - 1) / op.block));
  float most = 0, held = own;
  double squares = double(own) * double(own) * double(op.block) / double(op.segment);
  double all_squares = squares;
  for (int64_t b = 0; b < past; ++b) {
    const double square = double(mass[b]) * double(mass[b]);
    most = std::max(most, mass[b]);
    all_squares += square;
    if (b >= sink && b < local) continue;
    held += mass[b];
    squares += square;
  }
  const double missing = 1 - double(op.total);
  const auto enough = [&] {
    if (!op.by_entropy) return held >= op.total;
    const double ratio = (1 - double(held)) / double(held);
    return 16 * (all_squares - squares + ratio * ratio * squares) <= missing * missing;
  };
  int64_t n = 0;
  const auto keep = [&](int64_t b) { index[n++] = static_cast<int32_t>(b); };
  if (op.share > 0 || op.total >= 1) {
    for (int64_t b = 0; b < past; ++b)
      if (b < sink || b >= local || op.share == 0 || mass[b] >= op.share * most) keep(b);
    return static_cast<int32_t>(n);
  }
  // Ordered by one number: how likely a block is, whose bits order as it does, and then how early.
  int64_t n_others = 0;
  for (int64_t b = sink; b < local; ++b) {
    const auto bits = std::bit_cast<uint32_t>(mass[b] > 0 ? mass[b] : 0.0f);  // NaN is 0
    order[n_others++] = -(int64_t{bits} << 32) + b;
  }
  // The likeliest first, as many as it takes: doubled until they are enough.
  int64_t n_sorted = 0, n_taken = 0;
  while (!enough() && n_taken < n_others) {
    if (n_taken == n_sorted) {
      n_sorted = std::min(n_others, std::max<int64_t>(64, 2 * n_sorted));
      std::partial_sort(order + n_taken, order + n_sorted, order + n_others);
    }
    const float share = mass[order[n_taken++] & INT32_MAX];
    held += share;
    squares += double(share) * double(share);
  }
  for (int64_t b = 0; b < sink; ++b) keep(b);
  for (int64_t i = 0; i < n_taken; ++i) keep(order[i] & INT32_MAX);
  for (int64_t b = local; b < past; ++b) keep(b);
  std::sort(index + sink, index + sink + n_taken);
  return static_cast<int32_t>(n);
}

}  // namespace

void CpuBackend::run(const SelectMass& op) {
  check(op);
  const int64_t n_segments = op.out.count.dim(1), width = op.mass.dim(2);
  int64_t* orders = scratch_.get<int64_t>(n_threads_ * width);
  parallel_for(n_threads_, op.out.count.size(), [&](int64_t task, int thread) {
    const int64_t h = task / n_segments, i = task % n_segments, s = op.first_segment + i;
    op.out.count[h][i] = s < op.dense_before || s >= op.dense_from
                             ? kAllBlocks
                             : select(op, s * op.segment, op.mass[h][i].data, op.own[h][i],
                                      orders + thread * width, op.out.index[h][i].data);
  });
}

}  // namespace ei::cpu
