#include "ei/ops/score_blocks.h"

#include <algorithm>
#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/score_blocks.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// The midpoint of n rows' bounds, elementwise over d columns; rows are `stride` apart.
void midpoint(const float* rows, int64_t stride, int64_t n, int64_t d, float* HWY_RESTRICT mid,
              float* HWY_RESTRICT high) {
  std::copy_n(rows, d, mid);
  std::copy_n(rows, d, high);
  for (int64_t r = 1; r < n; ++r) {
    const float* row = rows + r * stride;
    for (int64_t c = 0; c < d; ++c) {
      mid[c] = std::min(mid[c], row[c]);
      high[c] = std::max(high[c], row[c]);
    }
  }
  for (int64_t c = 0; c < d; ++c) mid[c] = (mid[c] + high[c]) / 2;
}

int64_t score_scratch(int64_t d) { return kTileKeys * 2 * d + 2 * kStrip * kTileKeys; }

// Scores of KV head h for the blocks of one tile, for every segment that has any of them behind it.
// mids [n_segments * group, d].
void score_tile(const ScoreBlocks& op, int64_t h, int64_t tile, const float* mids, int64_t group,
                float* HWY_RESTRICT scratch) {
  const int64_t d = op.kv.layout.head_dim;
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  const int64_t begin = tile * kTileKeys;
  const int64_t past = (op.begin + (n_segments - 1) * op.segment) / op.kv.layout.block;
  const int64_t n = std::min(kTileKeys, past - begin);
  float *low = scratch, *high = low + kTileKeys * d;
  float *with_low = high + kTileKeys * d, *with_high = with_low + kStrip * kTileKeys;
  const char *lowest[kTileKeys], *highest[kTileKeys];
  const PageLayout& layout = op.kv.layout;
  for (int64_t j = 0; j < n;) {  // run of a page by run
    const int64_t b = begin + j, run = std::min(n - j, layout.n_blocks() - b % layout.n_blocks());
    const char *low_row = lowest_at(op.kv, h, b), *high_row = highest_at(op.kv, h, b);
    for (int64_t i = 0; i < run; ++i, ++j) {
      lowest[j] = low_row + i * layout.bound_rows() * layout.row_bytes();
      highest[j] = high_row + i * layout.bound_rows() * layout.row_bytes();
    }
  }
  pack_columns(n, d, layout.bound_dtype(), lowest, low);
  pack_columns(n, d, layout.bound_dtype(), highest, high);
  const float factor = op.scale / static_cast<float>(group);
  for (int64_t s = 0; s < n_segments; ++s) {
    const int64_t n_seen = std::min(n, (op.begin + s * op.segment) / op.kv.layout.block - begin);
    if (n_seen <= 0) continue;
    float* score = op.score[h][s].data + begin;
    for (int64_t g = 0; g < group; g += kStrip) {
      const int64_t m = std::min(kStrip, group - g);
      const float* mid = mids + (s * group + g) * d;
      product<false>(m, full_panels(n_seen), d, mid, d, low, d, with_low, kTileKeys);
      product<false>(m, full_panels(n_seen), d, mid, d, high, d, with_high, kTileKeys);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n_seen; ++j) {
          const float best = std::max(with_low[i * kTileKeys + j], with_high[i * kTileKeys + j]);
          score[j] = g + i == 0 ? best : score[j] + best;
        }
    }
    for (int64_t j = 0; j < n_seen; ++j) score[j] *= factor;
  }
}

// e^x for x <= 0, relative error below 3e-7 down to 2^-125; 0 below.
HWY_INLINE V32 exp_negative(V32 x) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const V32 t = hn::Mul(x, hn::Set(d, 1.44269504f));
  const V32 n = hn::Round(hn::Max(t, hn::Set(d, -126.0f)));
  // x - n ln 2 in two steps, then the series of e^r on [-ln 2 / 2, ln 2 / 2].
  const V32 r =
      hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6f), hn::NegMulAdd(n, hn::Set(d, 0.693145752f), x));
  V32 p = hn::Set(d, 1.0f / 720);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto scale = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenElseZero(hn::Ge(t, hn::Set(d, -125.5f)), hn::Mul(p, hn::BitCast(d, scale)));
}

// log Z - (sum e^t t) / Z with t = score - top: equal to -sum p log p, but nothing underflows on
// the way. The sums of 16 vectors at a time are float, the rest double.
float entropy(const float* score, int64_t n) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float top = *std::max_element(score, score + n);
  double z = 0, zt = 0;
  int64_t b = 0;
  while (b + lanes <= n) {
    V32 sum = hn::Zero(d), sum_t = hn::Zero(d);
    for (int i = 0; i < 16 && b + lanes <= n; ++i, b += lanes) {
      const V32 t = hn::Sub(hn::LoadU(d, score + b), hn::Set(d, top));
      const V32 e = exp_negative(t);
      sum = hn::Add(sum, e);
      sum_t = hn::MulAdd(e, t, sum_t);
    }
    z += double(hn::GetLane(hn::SumOfLanes(d, sum)));
    zt += double(hn::GetLane(hn::SumOfLanes(d, sum_t)));
  }
  for (; b < n; ++b) {
    const double t = double(score[b]) - double(top), e = std::exp(t);
    z += e;
    zt += e * t;
  }
  return static_cast<float>(std::max(0.0, std::log(z) - zt / z));
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(midpoint);
HWY_EXPORT(score_scratch);
HWY_EXPORT(score_tile);
HWY_EXPORT(entropy);

}  // namespace

// Bounds are fetched once per tile of blocks, for all segments of the chunk and heads of the group.
void CpuBackend::run(const ScoreBlocks& op) {
  check(op);
  if (op.q.rows == 0) return;
  const View<float, 2> q = rows_of(op.q);
  const int64_t kv_heads = op.score.dim(0);
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  const int64_t d = op.kv.layout.head_dim, group = op.q.cols / (kv_heads * d);
  const int64_t n_mids = n_segments * kv_heads * group;
  const int64_t per_thread = HWY_DYNAMIC_DISPATCH(score_scratch)(d);
  float* mids = scratch_.get<float>(2 * n_mids * d + n_threads_ * per_thread);
  float* tiles = mids + 2 * n_mids * d;
  // mids [n_kv_heads, n_segments, group, d], then the same again for the upper bounds on the way.
  parallel_for(n_threads_, n_mids, [&](int64_t i) {
    const int64_t h = i / (n_segments * group), s = i / group % n_segments, g = i % group;
    const int64_t first = s * op.segment;
    HWY_DYNAMIC_DISPATCH(midpoint)
    (q[first].data + (h * group + g) * d, op.q.cols, std::min(op.segment, op.q.rows - first), d,
     mids + i * d, mids + (n_mids + i) * d);
  });
  const int64_t past = (op.begin + (n_segments - 1) * op.segment) / op.kv.layout.block;
  const int64_t n_tiles = (past + kTileKeys - 1) / kTileKeys;
  parallel_for(n_threads_, kv_heads * n_tiles, [&](int64_t i, int thread) {
    const int64_t h = i / n_tiles;
    HWY_DYNAMIC_DISPATCH(score_tile)
    (op, h, i % n_tiles, mids + h * n_segments * group * d, group, tiles + thread * per_thread);
  });
  parallel_for(n_threads_, kv_heads * n_segments, [&](int64_t i) {
    const int64_t h = i / n_segments, s = i % n_segments;
    const int64_t n = (op.begin + s * op.segment) / op.kv.layout.block;
    op.entropy[op.begin / op.segment + s][op.layer][h] =
        n == 0 ? 0.0f : HWY_DYNAMIC_DISPATCH(entropy)(op.score[h][s].data, n);
  });
}

}  // namespace ei::cpu
#endif
