#include "ei/ops/select_mass.h"

#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/highest.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

// The past blocks of one segment that are kept, ascending, to `index`; `order` has room for all.
int32_t select(const SelectMass& op, int64_t past_tokens, const float* mass, float own,
               int64_t* order, int32_t* index) {
  const int64_t past = past_tokens / op.block;
  const int64_t sink = std::min(past, (op.sink + op.block - 1) / op.block);
  const int64_t local = std::max(sink, past - std::min(past, (op.local + op.block - 1) / op.block));
  float most = 0;
  double held = own;
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
  const auto enough = [&](double h, double kept_squares) {
    if (!op.by_entropy) return h >= double(op.total);
    const double ratio = (1 - h) / h;
    return 16 * (all_squares - kept_squares + ratio * ratio * kept_squares) <= missing * missing;
  };
  int64_t n = 0;
  const auto keep = [&](int64_t b) { index[n++] = static_cast<int32_t>(b); };
  if (op.share > 0 || op.total >= 1) {
    for (int64_t b = 0; b < past; ++b)
      if (b < sink || b >= local || op.share == 0 || mass[b] >= op.share * most) keep(b);
    return static_cast<int32_t>(n);
  }
  const auto key = [&](int64_t b) {  // NaN is 0
    return order_of(mass[b] > 0 ? mass[b] : 0.0f, b);
  };
  int64_t n_others = 0;
  for (int64_t b = sink; b < local; ++b) order[n_others++] = key(b);
  // The likeliest `low` are not enough, and `high` are, or are all there are. What is between them
  // is halved until it is one: each block is looked at a few times, and none are sorted.
  int64_t low = 0, high = enough(held, squares) ? 0 : n_others;
  while (low + 1 < high) {
    const int64_t middle = (low + high) / 2;
    std::nth_element(order + low, order + middle, order + high);
    double with = held, with_squares = squares;
    for (int64_t i = low; i < middle; ++i) {
      const double share = mass[index_of(order[i])];
      with += share;
      with_squares += share * share;
    }
    if (enough(with, with_squares)) {
      high = middle;
    } else {
      low = middle;
      held = with;
      squares = with_squares;
    }
  }
  const int64_t last = high > 0 ? order[high - 1] : INT64_MIN;
  for (int64_t b = 0; b < past; ++b)
    if (b < sink || b >= local || key(b) <= last) keep(b);
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
