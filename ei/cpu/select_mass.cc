#include "ei/ops/select_mass.h"

#include <algorithm>
#include <bit>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/highest.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

// Sums of some blocks' shares and of these squared.
struct Held {
  double shares = 0, squares = 0;

  void add(const Held& x) {
    shares += x.shares;
    squares += x.squares;
  }
  void add(float share) { add({share, double(share) * double(share)}); }
};

// Shares fall into bins by their first bits, whose order is that of numbers: eight bins for a power
// of two.
constexpr int kBinShift = 20;
constexpr int32_t kBins = (std::bit_cast<int32_t>(1.0f) >> kBinShift) + 1;

// The past blocks of one segment that are kept, ascending, to `index`; `order` has room for all.
int32_t select(const SelectMass& op, int64_t past_tokens, const float* mass, float own,
               int64_t* order, int32_t* index) {
  const int64_t past = past_tokens / op.block;
  const int64_t sink = std::min(past, (op.sink + op.block - 1) / op.block);
  const int64_t local = std::max(sink, past - std::min(past, (op.local + op.block - 1) / op.block));
  // The first blocks, the local ones, and of the others those that are likely enough.
  const auto keep = [&](const auto& is_likely) {
    int64_t n = 0;
    while (n < sink) index[n] = static_cast<int32_t>(n), ++n;
    for (int64_t b = sink; b < local; ++b) {  // without a branch that nobody foresees
      index[n] = static_cast<int32_t>(b);
      n += is_likely(b) ? 1 : 0;
    }
    for (int64_t b = local; b < past; ++b) index[n++] = static_cast<int32_t>(b);
    return static_cast<int32_t>(n);
  };
  if (op.share > 0) {
    float most = 0;
    for (int64_t b = 0; b < past; ++b) most = std::max(most, mass[b]);
    return keep([&](int64_t b) { return mass[b] >= op.share * most; });
  }
  if (op.total >= 1) return keep([](int64_t) { return true; });

  const auto share = [&](int64_t b) { return mass[b] > 0 ? mass[b] : 0.0f; };  // NaN is 0
  const auto bits = [&](int64_t b) { return std::bit_cast<int32_t>(share(b)); };
  const auto bin_of = [&](int64_t b) { return std::min(bits(b) >> kBinShift, kBins - 1); };
  Held held = {own, double(own) * double(own) * double(op.block) / double(op.segment)};
  for (int64_t b = 0; b < sink; ++b) held.add(mass[b]);
  for (int64_t b = local; b < past; ++b) held.add(mass[b]);
  Held bins[kBins];
  for (int64_t b = sink; b < local; ++b) bins[bin_of(b)].add(share(b));
  Held all = held;
  for (const Held& bin : bins) all.add(bin);
  const double missing = 1 - double(op.total);
  const auto enough = [&](const Held& more) {
    const double h = held.shares + more.shares, kept = held.squares + more.squares;
    if (!op.by_entropy) return h >= double(op.total);
    const double ratio = (1 - h) / h;
    return 16 * (all.squares - kept + ratio * ratio * kept) <= missing * missing;
  };
  if (enough({})) return keep([](int64_t) { return false; });
  // Whole bins from the likeliest on, and of the one with which they are enough block by block.
  int32_t bin = kBins - 1;
  for (; bin > 0 && !enough(bins[bin]); --bin) held.add(bins[bin]);
  int64_t n_in_bin = 0;
  for (int64_t b = sink; b < local; ++b)
    if (bin_of(b) == bin) order[n_in_bin++] = order_of(share(b), b);
  std::sort(order, order + n_in_bin);
  int64_t last = past;  // the least likely one, if there is any in the bin
  for (int64_t i = 0; i < n_in_bin; ++i) {
    last = index_of(order[i]);
    held.add(share(last));
    if (enough({})) break;
  }
  const int32_t least = last < past ? bits(last) : 0;
  // More than the least, or as much and no later: in one comparison.
  return keep([&](int64_t b) { return bits(b) + (b <= last ? 1 : 0) > least; });
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
