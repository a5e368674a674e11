#include "ei/ops/sparse_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ei/cpu/attention_item.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/sparse_attention.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Floats of scratch a thread needs for items of n_rows.
int64_t attention_scratch(int64_t n_rows, int64_t d) {
  return kTileKeys * (d + padded(d) + kStrip) + n_rows * (d + padded(d) + 2) + 8 * 16;
}

// n rows of d values, padded with zeros to full vectors, into panels of kTileKeys rows.
void pack_values(int64_t n, int64_t d, DType type, const char* const* rows,
                 float* HWY_RESTRICT tile) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(F32()));
  const int64_t width = padded(d), wide = width / panel_columns() * panel_columns();
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t c = 0; c < width;) {
      const int64_t columns = c < wide ? panel_columns() : lanes;
      float* to = tile + c * kTileKeys + j * columns;
      const int64_t left = std::clamp<int64_t>(d - c, 0, columns);
      widen(rows[j], type, c, left, to);
      std::fill(to + left, to + columns, 0.0f);
      c += columns;
    }
  }
}

// Online softmax of one row of a tile, in units of log 2: of n scores the row sees the first
// n_seen, and some of the first tile's. Replaces them by probabilities relative to the maximum so
// far, and returns the factor that makes older ones so.
HWY_INLINE float softmax_row(int64_t n_seen, int64_t n, float* HWY_RESTRICT s, float& top,
                             float& sum) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  std::fill(s + n_seen, s + n, -std::numeric_limits<float>::infinity());
  V32 most = hn::LoadU(df, s);
  for (int64_t c = lanes; c < n; c += lanes) most = hn::Max(most, hn::LoadU(df, s + c));
  const float factor = raise_top(most, top);
  V32 total = hn::Zero(df);
  for (int64_t c = 0; c < n; c += lanes) {
    const V32 p = exp2_negative(hn::Sub(hn::LoadU(df, s + c), hn::Set(df, top)));
    hn::StoreU(p, df, s + c);
    total = hn::Add(total, p);
  }
  std::fill(s + n_seen, s + n, 0.0f);
  sum = sum * factor + hn::GetLane(hn::SumOfLanes(df, total));
  return factor;
}

// Online softmax over tiles of keys (in the order of the sequence), with the running maximum and
// sum of every row beside its unnormalised output.
void attend(const SparseAttention& op, const AttentionItem& item, float* HWY_RESTRICT scratch) {
  const int64_t d = op.kv.layout.head_dim, width = padded(d), n_heads = op.q.cols / d;
  const int64_t group = n_heads / op.kv.n_kv_heads(), n_rows = item.n_tokens * group;
  const int64_t value_offset = op.kv.layout.first_value() * op.kv.layout.row_bytes();
  const auto take = [&](int64_t n) {
    float* piece = scratch;
    scratch += (n + 15) / 16 * 16;
    return piece;
  };
  float* kt = take(kTileKeys * d);
  float* vt = take(kTileKeys * width);
  float* score = take(kStrip * kTileKeys);
  float* q = take(n_rows * d);
  float* out = take(n_rows * width);
  float* top = take(n_rows);
  float* sum = take(n_rows);
  const char* keys[kTileKeys];

  const View<float, 2> queries = rows_of(op.q);
  const float scale = op.scale * 1.44269504f;  // scores in units of log 2
  for (int64_t r = 0; r < n_rows; ++r) {
    const float* from =
        queries[item.first + r / group].data + (item.kv_head * group + r % group) * d;
    for (int64_t c = 0; c < d; ++c) q[r * d + c] = scale * from[c];
  }
  std::fill_n(out, n_rows * width, 0.0f);
  std::fill_n(top, n_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, n_rows, 0.0f);

  // Row r sees the keys before seen(r) of the sequence: the past and, causally, its segment.
  const int64_t first_seen = item.n_past + op.begin + item.first - item.segment_begin + 1;
  const auto seen = [&](int64_t r) { return first_seen + r / group; };
  const int64_t n_keys = seen(n_rows - 1);

  for (int64_t j = 0; j < n_keys; j += kTileKeys) {
    const int64_t n_tile = std::min(kTileKeys, n_keys - j);
    find_keys(op, item, j, n_tile, keys);
    pack_columns(n_tile, d, op.kv.layout.dtype, keys, kt);
    for (int64_t i = 0; i < n_tile; ++i) keys[i] += value_offset;
    pack_values(n_tile, d, op.kv.layout.dtype, keys, vt);
    for (int64_t r = 0; r < n_rows; r += kStrip) {
      const int64_t m = std::min(kStrip, n_rows - r);
      // What the last row sees of the tile, in full panels.
      const int64_t n = std::min(kTileKeys, seen(r + m - 1) - j);
      if (n <= 0) continue;
      const int64_t columns = full_panels(n);
      product<false>(m, columns, d, q + r * d, d, kt, d, score, kTileKeys);
      float factor[kStrip];
      for (int64_t i = 0; i < m; ++i)
        factor[i] = softmax_row(std::clamp<int64_t>(seen(r + i) - j, 0, n), columns,
                                score + i * kTileKeys, top[r + i], sum[r + i]);
      product<true>(m, width, n, score, kTileKeys, vt, kTileKeys, out + r * width, width, factor);
    }
  }

  const View<float, 2> context = rows_of(op.out);
  for (int64_t r = 0; r < n_rows; ++r) {
    float* to = context[item.first + r / group].data + (item.kv_head * group + r % group) * d;
    for (int64_t c = 0; c < d; ++c) to[c] = out[r * width + c] / sum[r];
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {
HWY_EXPORT(attend);
HWY_EXPORT(attention_scratch);

// Rows of one product: enough to make fetching a tile cheap, few enough to stay in L2.
constexpr int64_t kItemRows = 1024;

}  // namespace

void CpuBackend::run(const SparseAttention& op) {
  check(op);
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim, group = op.q.cols / d / kv.n_kv_heads();
  const int64_t step = std::max<int64_t>(1, kItemRows / group);
  std::vector<AttentionItem> items;
  for (int64_t at = 0; at < op.q.rows;) {
    // Items are cut at absolute positions, so that chunks never change how a row is computed.
    const int64_t position = op.begin + at, s = position / op.segment;
    const int64_t in_segment = position - s * op.segment;
    const int64_t end = std::min(op.segment, (in_segment / step + 1) * step);
    const int64_t n = std::min(end - in_segment, op.q.rows - at);
    for (int64_t h = 0; h < kv.n_kv_heads(); ++h) {
      const int64_t local = s - op.begin / op.segment;
      const int32_t count = op.selection.count[h][local];
      const bool all = count == kAllBlocks;
      items.push_back({.kv_head = h,
                       .first = at,
                       .n_tokens = n,
                       .segment_begin = s * op.segment,
                       .n_past = all ? s * op.segment : count * op.block,
                       .blocks = all ? nullptr : op.selection.index[h][local].data});
    }
    at += n;
  }
  // The longest first, so that the threads end together.
  std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
    return a.n_tokens * (a.n_past + a.n_tokens) > b.n_tokens * (b.n_past + b.n_tokens);
  });
  if (tiles_ != Tiles::kNone) return attend_tiles(op, items, std::min(step, op.segment) * group);
  const int64_t per_thread =
      HWY_DYNAMIC_DISPATCH(attention_scratch)(std::min(step, op.segment) * group, d);
  float* scratch = scratch_.get<float>(n_threads_ * per_thread);
  parallel_for(n_threads_, static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    HWY_DYNAMIC_DISPATCH(attend)(op, items[static_cast<size_t>(i)], scratch + thread * per_thread);
  });
}

}  // namespace ei::cpu
#endif
