#include "ei/ops/estimate_mass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/estimate_mass.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/sketch-inl.h"
#include "ei/cpu/sketch_amx-inl.h"
#include "ei/cpu/sketch_shares-inl.h"
#include "ei/cpu/tile-inl.h"

#ifndef EI_CPU_ESTIMATE_MASS_HEAD_
#define EI_CPU_ESTIMATE_MASS_HEAD_
namespace ei::cpu {

// What the segments of a chunk that are estimated have in common, and a KV head's keys as the
// estimate takes them.
struct MassOfHead {
  Tiles tiles = Tiles::kNone;
  int64_t head = 0;
  int64_t group = 0;                  // query heads
  int64_t n_blocks = 0;               // up to the end of the last of these segments
  const float* directions = nullptr;  // kSketch: in panels
  uint8_t* keys = nullptr;            // kSketch: [n_blocks * block, w]
  float* scale = nullptr;             // kSketch: [n_blocks]
  float* means = nullptr;             // kMeanKeys: [n_blocks, d]
};

}  // namespace ei::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

constexpr float kLog2e = 1.44269504f;

// Columns of the few directions are packed so many vectors wide, and queries of a strip.
constexpr int64_t kSketchVectors = 2;

// n keys of a block from their projections x [n, stride], less `mean`. Returns what a step stands
// for.
HWY_INLINE float quantize_block(int64_t n, const float* HWY_RESTRICT x, int64_t stride, int64_t w,
                                const float* HWY_RESTRICT mean, uint8_t* HWY_RESTRICT to) {
  const hn::CappedTag<float, 4> d;  // w is a multiple of 4
  const hn::RebindToSigned<decltype(d)> di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto highest = hn::Zero(d);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t k = 0; k < w; k += lanes)
      highest =
          hn::Max(hn::AbsDiff(hn::LoadU(d, x + j * stride + k), hn::LoadU(d, mean + k)), highest);
  const float most = hn::GetLane(hn::MaxOfLanes(d, highest));
  const float scale = most / 63, inverse = scale > 0 ? 1 / scale : 0;
  // To the nearest by adding what leaves no room for a fraction, with 64 steps on top.
  const auto round = hn::Set(d, 0x1.8p23f + 64), by = hn::Set(d, inverse);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t k = 0; k < w; k += lanes) {
      const auto step =
          hn::MulAdd(hn::Sub(hn::LoadU(d, x + j * stride + k), hn::LoadU(d, mean + k)), by, round);
      const auto whole = hn::And(hn::BitCast(di, step), hn::Set(di, 127));
      hn::StoreU(hn::DemoteTo(hn::Rebind<uint8_t, decltype(d)>(), whole),
                 hn::Rebind<uint8_t, decltype(d)>(), to + j * w + k);
    }
  return scale;
}

// x[i] = 2^x[i] for x <= 0, with room for whole vectors; returns the sum of n.
HWY_INLINE float exp2_sum(float* HWY_RESTRICT x, int64_t n) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  std::fill(x + n, x + (n + lanes - 1) / lanes * lanes, -std::numeric_limits<float>::infinity());
  V32 sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += lanes) {
    const V32 e = exp2_or_zero(hn::LoadU(d, x + i));
    hn::StoreU(e, d, x + i);
    sum = hn::Add(sum, e);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// mass[b] += factor e[b] of the past blocks; returns the same of the others.
HWY_INLINE float add_shares(const float* HWY_RESTRICT e, int64_t past, int64_t n, float factor,
                            float* HWY_RESTRICT mass) {
  for (int64_t b = 0; b < past; ++b) mass[b] += factor * e[b];
  float own = 0;
  for (int64_t b = past; b < n; ++b) own += factor * e[b];
  return own;
}

// -sum p log p of n shares and one more.
float entropy_of(const float* p, int64_t n, float own) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const V32 least = hn::Set(d, 1e-30f);
  double sum = own > 0 ? -double(own) * std::log(double(own)) : 0;
  int64_t b = 0;
  while (b + lanes <= n) {
    V32 part = hn::Zero(d);
    for (int i = 0; i < 16 && b + lanes <= n; ++i, b += lanes) {
      const V32 x = hn::LoadU(d, p + b);
      part = hn::NegMulAdd(x, hn::Log(d, hn::Max(x, least)), part);
    }
    sum += double(hn::GetLane(hn::SumOfLanes(d, part)));
  }
  for (; b < n; ++b)
    if (p[b] > 0) sum -= double(p[b]) * std::log(double(p[b]));
  return static_cast<float>(std::max(0.0, sum));
}

// Floats of scratch that a thread needs.
int64_t mass_scratch(const EstimateMass& op, int64_t group, int64_t n_blocks) {
  const int64_t d = op.kv.layout.head_dim, panel = panel_columns();
  const int64_t n = n_blocks + 16;
  switch (op.estimate) {
    case Estimate::kSketch: {
      const int64_t w = full_panels<kSketchVectors>(op.basis.n_directions());
      return std::max(kStripQueries * (d + w + w / 4 + 16 + n / 2) + 2 * kStripGroups * (n + 16),
                      op.block * (d + w)) +
             64;
    }
    case Estimate::kAntidiagonals: {
      const int64_t rows = op.segment / op.stride * group, depth = op.stride * d;
      const int64_t columns = n_blocks * op.block / op.stride + kTileKeys;
      return rows * (depth + columns + 1) + kTileKeys * d + n + 64;
    }
    default:
      return op.segment * group * (n + panel + kTileKeys) + kTileKeys * d + n + 64;
  }
}

// Block b of a head's keys projected and rounded.
void sketch_block(const EstimateMass& op, const MassOfHead& at, int64_t b, float* scratch) {
  const int64_t d = op.kv.layout.head_dim, w = op.basis.n_directions();
  const int64_t columns = full_panels<kSketchVectors>(w);
  float* const x = scratch + op.block * d;
  for (int64_t j = 0; j < op.block; ++j)
    widen(key_at(op.kv, at.head, b * op.block + j), op.kv.layout.dtype, 0, d, scratch + j * d);
  product<false, kSketchVectors>(op.block, columns, d, scratch, d, at.directions, d, x, columns);
  at.scale[b] = quantize_block(op.block, x, columns, w, op.basis.mean[at.head].data,
                               at.keys + b * op.block * w);
}

// take(b, highest) for the past blocks: the highest product of each query with the block's keys.
template <class Take>
void highest_of_past(Tiles tiles, int64_t n, int64_t block, const uint8_t* keys, int64_t w,
                     const StripQueries& strip, const Take& take) {
  if (tiles != Tiles::kNone && fits_tiles(block, w)) {
    if (tiles == Tiles::kAmx) return highest_by_tiles<Amx>(n, keys, w, strip, take);
    return highest_by_tiles<EmulatedAmx>(n, keys, w, strip, take);
  }
  for (int64_t b = 0; b < n; ++b) {
    int32_t most[kStripQueries];
    highest_products<false>(block, keys + b * block * w, w, strip, 0, most);
    take(b, most);
  }
}

// x . x. All instruction sets with vectors add up in one order.
float square(const float* HWY_RESTRICT x, int64_t d) {
  const hn::CappedTag<float, 4> four;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(four));
  auto sums = hn::Zero(four);
  int64_t c = 0;
  for (; c + lanes <= d; c += lanes) {
    const auto v = hn::LoadU(four, x + c);
    sums = hn::MulAdd(v, v, sums);
  }
  float sum = hn::GetLane(hn::SumOfLanes(four, sums));
  for (; c < d; ++c) sum += x[c] * x[c];
  return sum;
}

// How many segments a strip holds the asked queries of, of one head; 1 if it takes several strips.
int64_t segments_of_strip(const EstimateMass& op) {
  return std::max<int64_t>(1, kStripGroups / sketch_groups(op.segment));
}

// Shares of n local segments from s on by sketches: for every strip of queries their highest logit
// of every block, then one exponential for every group of queries and block.
void sketch_shares(const EstimateMass& op, const MassOfHead& at, int64_t s, int64_t n,
                   float* scratch) {
  const int64_t d = op.kv.layout.head_dim, w = op.basis.n_directions();
  const int64_t begin = op.begin + s * op.segment, past = begin / op.block;
  const int64_t n_blocks = past + n * op.segment / op.block;
  const View<float, 2> q = rows_of(op.q);
  float* const queries = scratch;                        // in panels
  float* const projected = queries + kStripQueries * d;  // [w, kStripQueries]
  float* const scale = projected + kStripQueries * w;
  alignas(64) int32_t position[kStripQueries];
  const StripQueries strip = {reinterpret_cast<int8_t*>(scale + kStripQueries),
                              reinterpret_cast<int16_t*>(scale + kStripQueries * (1 + w / 4)),
                              scale, position};
  const int64_t all = (n_blocks + kBlocksAtOnce - 1) / kBlocksAtOnce * kBlocksAtOnce;
  float top[kStripQueries];
  float* const e = scale + kStripQueries * (1 + w / 4 + runs_of(w));  // [all, kStripGroups]
  float* const shares = e + (all + 16) * kStripGroups;                // the same, added up
  const StripLogits logits = {
      .shift = sketch_shift(w),
      .query_scale = scale,
      .block_scale = at.scale,
      .whole = reinterpret_cast<int16_t*>(shares + (all + 16) * kStripGroups),  // [all, ...]
      .top = top};
  std::fill_n(shares, all * kStripGroups, 0.0f);

  const int64_t of_segment = sketch_groups(op.segment), n_groups = n * of_segment;
  const float weight = 1 / static_cast<float>(of_segment * at.group);
  for (int64_t head = 0; head < at.group; ++head)
    for (int64_t first = 0; first < n_groups; first += kStripGroups) {
      const char* rows[kStripQueries];  // by place
      for (int64_t i = 0; i < kStripQueries; ++i) {
        // What is missing of the strip is filled up with its last group.
        const int64_t group = std::min(first + i / kSketchGroup, n_groups - 1);
        const int64_t of_group = group % of_segment * kSketchGroup + i % kSketchGroup;
        const int64_t from = pair_begin(of_group, op.segment);
        const int64_t first_row = group / of_segment * op.segment + from;
        const float* const x = q[s * op.segment + first_row].data + (at.head * at.group + head) * d;
        const int64_t asked =
            from + 1 < op.segment ? asked_of_pair(square(x, d), square(x + op.q.cols, d), head) : 0;
        position[place_of(i)] = static_cast<int32_t>(first_row + asked);
        rows[place_of(i)] = reinterpret_cast<const char*>(x + asked * op.q.cols);
      }
      pack_columns<kSketchVectors>(kStripQueries, d, DType::kF32, rows, queries);
      product<false, kSketchVectors>(w, kStripQueries, d, op.basis.directions[at.head].data, d,
                                     queries, d, projected, kStripQueries);
      quantize_queries(projected, w, op.scale * kLog2e * static_cast<float>(1 << logits.shift),
                       strip);
      std::fill_n(top, kStripQueries, -std::numeric_limits<float>::infinity());
      highest_of_past(
          at.tiles, past, op.block, at.keys, w, strip,
          [&](int64_t b, const int32_t* highest) { keep_products<false>(logits, b, highest); });
      for (int64_t b = past; b < n_blocks; ++b) {
        int32_t highest[kStripQueries];
        highest_products<true>(op.block, at.keys + b * op.block * w, w, strip, b * op.block - begin,
                               highest);
        keep_products<true>(logits, b, highest);
      }
      std::fill(logits.whole + n_blocks * kStripQueries, logits.whole + all * kStripQueries,
                kHidden);
      float sums[kBlocksAtOnce * kStripGroups] = {}, factor[kStripGroups];
      const int64_t seen = past / kBlocksAtOnce * kBlocksAtOnce;
      exponentials<false>(logits, 0, seen, e, sums);
      exponentials<true>(logits, seen, all, e, sums);
      for (int64_t i = 0; i < kStripGroups; ++i) {
        float sum = 0;
        for (int64_t u = 0; u < kBlocksAtOnce; ++u) sum += sums[u * kStripGroups + i];
        factor[i] = first + i < n_groups ? weight / sum : 0;
      }
      add_scaled(all, factor, e, shares);
    }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t own = past + i * op.segment / op.block;
    if (n == 1) add_groups(n_blocks, shares, 0, kStripGroups, e);
    if (n > 1) add_groups(n_blocks, shares, i * of_segment, of_segment, e);
    std::copy_n(e, own, op.mass[at.head][s + i].data);
    op.own[at.head][s + i] = std::accumulate(e + own, e + own + op.segment / op.block, 0.0f);
  }
}

// By antidiagonals: queries of a stride, the last first, are one row of stride * d numbers. Keys
// are taken by what is left of their position divided by the stride.
float antidiagonal_shares(const EstimateMass& op, const MassOfHead& at, int64_t s, float* mass,
                          float* scratch) {
  const int64_t d = op.kv.layout.head_dim, t = op.stride, depth = t * d;
  const int64_t begin = op.begin + s * op.segment, past = begin / op.block;
  const int64_t n = past + op.segment / op.block, per_block = op.block / t;
  const int64_t rows = op.segment / t, n_columns = n * per_block;
  const int64_t stride = (n_columns + kTileKeys - 1) / kTileKeys * kTileKeys;
  const View<float, 2> q = rows_of(op.q);
  float* const reversed = scratch;  // [group * rows, depth]
  float* const tile = reversed + at.group * rows * depth;
  float* const logit = tile + kTileKeys * d;  // [group * rows, stride]
  float* const ones = logit + at.group * rows * stride;
  float* const x = ones + at.group * rows;
  const float scale = op.scale * kLog2e / static_cast<float>(t);
  std::fill_n(ones, at.group * rows, 1.0f);
  for (int64_t g = 0; g < at.group; ++g)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t u = 0; u < t; ++u) {
        const float* from =
            q[s * op.segment + r * t + t - 1 - u].data + (at.head * at.group + g) * d;
        for (int64_t c = 0; c < d; ++c)
          reversed[(g * rows + r) * depth + u * d + c] = scale * from[c];
      }
  for (int64_t c = 0; c < n_columns; c += kTileKeys) {
    const int64_t m = std::min(kTileKeys, n_columns - c);
    const char* keys[kTileKeys];
    for (int64_t u = 0; u < t; ++u) {
      for (int64_t j = 0; j < m; ++j) keys[j] = key_at(op.kv, at.head, (c + j) * t + u);
      pack_columns(m, d, op.kv.layout.dtype, keys, tile);
      const auto multiply = u == 0 ? product<false> : product<true>;
      multiply(at.group * rows, full_panels(m), d, reversed + u * d, depth, tile, d, logit + c,
               stride, ones);
    }
  }
  float own = 0;
  const float weight = 1 / static_cast<float>(rows * at.group);
  for (int64_t r = 0; r < at.group * rows; ++r) {
    float* const row = logit + r * stride;
    const int64_t seen = begin / t + r % rows + 1;
    const float top = *std::max_element(row, row + seen);
    for (int64_t c = 0; c < seen; ++c) row[c] -= top;
    const float sum = exp2_sum(row, seen);
    std::fill(row + seen, row + n_columns, 0.0f);
    for (int64_t b = 0; b < n; ++b) {
      x[b] = 0;
      for (int64_t c = b * per_block; c < (b + 1) * per_block; ++c) x[b] += row[c];
    }
    own += add_shares(x, past, n, weight / sum, mass);
  }
  return own;
}

// The mean key of block b.
void mean_key(const EstimateMass& op, const MassOfHead& at, int64_t b, float* scratch) {
  const int64_t d = op.kv.layout.head_dim;
  float* const mean = at.means + b * d;
  std::fill_n(mean, d, 0.0f);
  for (int64_t j = 0; j < op.block; ++j) {
    widen(key_at(op.kv, at.head, b * op.block + j), op.kv.layout.dtype, 0, d, scratch);
    for (int64_t c = 0; c < d; ++c) mean[c] += scratch[c];
  }
  for (int64_t c = 0; c < d; ++c) mean[c] /= static_cast<float>(op.block);
}

float mean_key_shares(const EstimateMass& op, const MassOfHead& at, int64_t s, float* mass,
                      float* scratch) {
  const int64_t d = op.kv.layout.head_dim;
  const int64_t past = (op.begin + s * op.segment) / op.block, n = past + op.segment / op.block;
  const int64_t stride = (n + kTileKeys - 1) / kTileKeys * kTileKeys;
  float* const tile = scratch;
  float* const logit = tile + kTileKeys * d;  // [segment, stride]
  float* const x = logit + op.segment * stride;
  std::fill_n(x, n, 0.0f);
  for (int64_t g = 0; g < at.group; ++g) {
    const float* const q = rows_of(op.q)[s * op.segment].data + (at.head * at.group + g) * d;
    for (int64_t b = 0; b < n; b += kTileKeys) {
      const int64_t m = std::min(kTileKeys, n - b);
      const char* means[kTileKeys];
      for (int64_t j = 0; j < m; ++j)
        means[j] = reinterpret_cast<const char*>(at.means + (b + j) * d);
      pack_columns(m, d, DType::kF32, means, tile);
      product<false>(op.segment, full_panels(m), d, q, op.q.cols, tile, d, logit + b, stride);
    }
    const float scale = op.scale * kLog2e;
    for (int64_t i = 0; i < op.segment; ++i) {
      float* const row = logit + i * stride;
      const float top = *std::max_element(row, row + n);
      for (int64_t b = 0; b < n; ++b) row[b] = scale * (row[b] - top);
      exp2_sum(row, n);
      for (int64_t b = 0; b < n; ++b) x[b] += row[b];
    }
  }
  float sum = 0;
  for (int64_t b = 0; b < n; ++b) sum += x[b];
  return add_shares(x, past, n, 1 / sum, mass);
}

// What the segments' estimates need of block b of a head's keys.
void prepare_block(const EstimateMass& op, const MassOfHead& at, int64_t b, float* scratch) {
  if (op.estimate == Estimate::kSketch) sketch_block(op, at, b, scratch);
  if (op.estimate == Estimate::kMeanKeys) mean_key(op, at, b, scratch);
}

// Of n segments from s on.
void estimate_segments(const EstimateMass& op, const MassOfHead& at, int64_t s, int64_t n,
                       float* scratch) {
  if (op.estimate == Estimate::kSketch) sketch_shares(op, at, s, n, scratch);
  for (int64_t end = s + n; s < end; ++s) {
    float* const mass = op.mass[at.head][s].data;
    const int64_t past = (op.begin + s * op.segment) / op.block;
    if (op.estimate != Estimate::kSketch) {
      std::fill_n(mass, past, 0.0f);
      op.own[at.head][s] = op.estimate == Estimate::kMeanKeys
                               ? mean_key_shares(op, at, s, mass, scratch)
                               : antidiagonal_shares(op, at, s, mass, scratch);
    }
    op.entropy[op.begin / op.segment + s][op.layer][at.head] =
        entropy_of(mass, past, op.own[at.head][s]);
  }
}

int64_t packed_directions(const SketchBasis& basis, int64_t head, float* to) {
  const int64_t w = basis.n_directions(), d = basis.directions.dim(2);
  if (to == nullptr) return full_panels<kSketchVectors>(w) * d;
  const char* rows[kTileKeys];
  for (int64_t r = 0; r < w; ++r)
    rows[r] = reinterpret_cast<const char*>(basis.directions[head][r].data);
  pack_columns<kSketchVectors>(w, d, DType::kF32, rows, to);
  return 0;
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(mass_scratch);
HWY_EXPORT(packed_directions);
HWY_EXPORT(prepare_block);
HWY_EXPORT(segments_of_strip);
HWY_EXPORT(estimate_segments);

// Of keys that are prepared in one call, which takes a microsecond a block.
constexpr int64_t kBlocksOfRun = 16;

}  // namespace

// What the estimate needs of the keys is made for all heads first: a loop for each of them would
// have threads wait for each other twice a head.
void CpuBackend::run(const EstimateMass& op) {
  check(op);
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim;
  const int64_t first = op.begin / op.segment;
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  const int64_t from = std::clamp<int64_t>(op.dense_before - first, 0, n_segments);
  const int64_t to = std::clamp<int64_t>(op.dense_from - first, from, n_segments);
  for (int64_t s = 0; s < n_segments; ++s)
    if (s < from || s >= to)
      for (int64_t h = 0; h < kv_heads; ++h) op.entropy[first + s][op.layer][h] = 0;
  if (from == to) return;

  const int64_t group = op.q.cols / d / kv_heads,
                n_blocks = (op.begin + to * op.segment) / op.block;
  const bool is_sketch = op.estimate == Estimate::kSketch;
  const auto whole_lines = [](int64_t n) { return (n + 15) / 16 * 16; };
  const int64_t n_directions =
      is_sketch ? HWY_DYNAMIC_DISPATCH(packed_directions)(op.basis, 0, nullptr) : 0;
  const int64_t n_keys =  // and what a register reads behind them
      is_sketch ? (n_blocks * op.block * op.basis.n_directions() + kAmxRowBytes) / 4 : 0;
  const int64_t n_means = whole_lines(op.estimate == Estimate::kMeanKeys ? n_blocks * d : n_blocks);
  const int64_t per_thread = whole_lines(HWY_DYNAMIC_DISPATCH(mass_scratch)(op, group, n_blocks));
  const int64_t per_head = whole_lines(n_directions + n_means + n_keys);
  float* const scratch = scratch_.get<float>(n_threads_ * per_thread + kv_heads * per_head);
  std::vector<MassOfHead> heads;
  for (int64_t h = 0; h < kv_heads; ++h) {
    float* const directions = scratch + n_threads_ * per_thread + h * per_head;
    float* const means = directions + n_directions;
    if (is_sketch) HWY_DYNAMIC_DISPATCH(packed_directions)(op.basis, h, directions);
    heads.push_back({.tiles = tiles_,
                     .head = h,
                     .group = group,
                     .n_blocks = n_blocks,
                     .directions = directions,
                     .keys = reinterpret_cast<uint8_t*>(means + n_means),
                     .scale = means,
                     .means = means});
  }
  const int64_t n_runs = (n_blocks + kBlocksOfRun - 1) / kBlocksOfRun;
  if (op.estimate != Estimate::kAntidiagonals)
    parallel_for(n_threads_, kv_heads * n_runs, [&](int64_t i, int thread) {
      const int64_t begin = i % n_runs * kBlocksOfRun;
      const MassOfHead& at = heads[static_cast<size_t>(i / n_runs)];
      for (int64_t b = begin; b < std::min(begin + kBlocksOfRun, n_blocks); ++b)
        HWY_DYNAMIC_DISPATCH(prepare_block)(op, at, b, scratch + thread * per_thread);
    });
  // Head by head, so that what is made of its keys stays in the cache while its segments read it,
  // and the last first: it is the longest, so that the threads end together.
  const int64_t at_once = is_sketch ? HWY_DYNAMIC_DISPATCH(segments_of_strip)(op) : 1;
  const int64_t n_items = (to - from + at_once - 1) / at_once;  // of a head
  parallel_for(n_threads_, kv_heads * n_items, [&](int64_t i, int thread) {
    const MassOfHead& at = heads[static_cast<size_t>(i / n_items)];
    const int64_t end = to - i % n_items * at_once, n = std::min(at_once, end - from);
    HWY_DYNAMIC_DISPATCH(estimate_segments)
    (op, at, end - n, n, scratch + thread * per_thread);
  });
}

}  // namespace ei::cpu
#endif
