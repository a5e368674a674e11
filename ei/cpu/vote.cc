#include "ei/ops/vote.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"
#include "ei/cpu/vote_tile.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/vote.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Queries [first, first + n) of one head against the tile of keys from `key` on. q: these queries,
// [n, d], times the scale in units of log 2. panels: room for the keys.
void multiply_tile(const Vote& op, int64_t kv_head, int64_t first, int64_t n, int64_t key,
                   const float* HWY_RESTRICT q, float* HWY_RESTRICT panels, VoteTile& out) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim, n_rows = kv.n_rows[kv_head];
  const int64_t n_tile = std::min(kTileKeys, n_rows - key), columns = full_panels(n_tile);
  const char* keys[kTileKeys];
  for (int64_t u = 0; u < n_tile; ++u) keys[u] = key_at(kv, kv_head, key + u);
  pack_columns(n_tile, d, kv.layout.dtype, keys, panels);
  product<false>(n, columns, d, q, d, panels, d, out.p[0], kTileKeys);
  for (int64_t i = 0; i < n; ++i) {
    float* s = out.p[i];
    // Query i of the window sees the rows up to its own.
    const int64_t n_seen =
        std::clamp<int64_t>(n_rows - op.n_queries + first + i + 1 - key, 0, n_tile);
    std::fill(s + n_seen, s + columns, -std::numeric_limits<float>::infinity());
    V32 most = hn::Set(df, -std::numeric_limits<float>::infinity());
    for (int64_t c = 0; c < columns; c += lanes) most = hn::Max(most, hn::LoadU(df, s + c));
    most = hn::MaxOfLanes(df, most);
    out.top[i] = hn::GetLane(most);
    V32 total = hn::Zero(df);
    for (int64_t c = 0; c < columns; c += lanes) {
      const V32 p = exp2_negative(hn::Sub(hn::LoadU(df, s + c), most));
      hn::StoreU(p, df, s + c);
      total = hn::Add(total, p);
    }
    out.sum[i] = n_seen > 0 ? hn::GetLane(hn::SumOfLanes(df, total)) : 0;
  }
}

// The highest score of each of n queries in all tiles, and 1 / its softmax's denominator.
void merge_tiles(const VoteTile* tiles, int64_t n_tiles, int64_t n, float* HWY_RESTRICT top,
                 float* HWY_RESTRICT inverse) {
  const F32 df;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(df))) {
    V32 most = hn::LoadU(df, tiles[0].top + i), total = hn::Zero(df);
    for (int64_t t = 1; t < n_tiles; ++t) most = hn::Max(most, hn::LoadU(df, tiles[t].top + i));
    for (int64_t t = 0; t < n_tiles; ++t)
      total = hn::MulAdd(hn::LoadU(df, tiles[t].sum + i),
                         exp2_negative(hn::Sub(hn::LoadU(df, tiles[t].top + i), most)), total);
    hn::StoreU(most, df, top + i);
    hn::StoreU(hn::Div(hn::Set(df, 1), total), df, inverse + i);
  }
}

// Adds the probabilities of n queries to the votes for the first n_votes keys of a tile, or takes
// the highest. Their factors are written over the tile's sums, and votes have a vector's room more.
void add_tile(VoteTile& tile, int64_t n, int64_t n_votes, const float* HWY_RESTRICT top,
              const float* HWY_RESTRICT inverse, bool highest, float* HWY_RESTRICT votes) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t i = 0; i < n; i += lanes)
    hn::StoreU(hn::Mul(exp2_negative(hn::Sub(hn::LoadU(df, tile.top + i), hn::LoadU(df, top + i))),
                       hn::LoadU(df, inverse + i)),
               df, tile.sum + i);
  for (int64_t c = 0; c < n_votes; c += lanes) {
    V32 vote = hn::LoadU(df, votes + c);
    for (int64_t i = 0; i < n; ++i) {
      const V32 p = hn::LoadU(df, tile.p[i] + c), factor = hn::Set(df, tile.sum[i]);
      vote = highest ? hn::Max(vote, hn::Mul(p, factor)) : hn::MulAdd(p, factor, vote);
    }
    hn::StoreU(vote, df, votes + c);
  }
}

int64_t expect_scratch(int64_t d) { return kTileKeys * d + full_panels(d) * (kTileKeys + d) + 64; }

// Probabilities of the rows of one query head's KV head that are no sinks.
void expect_head(const ExpectVotes& op, int64_t head, float* HWY_RESTRICT p,
                 float* HWY_RESTRICT scratch) {
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim, columns = full_panels(d);
  const int64_t kv_head = head / (op.mean.dim(0) / kv.n_kv_heads()), n_rows = kv.n_rows[kv_head];
  float *keys = scratch, *moved = keys + kTileKeys * d;  // by the covariance: [kTileKeys, columns]
  float* covariance = moved + kTileKeys * columns;       // in panels
  for (int64_t c = 0; c < d; c += kTileKeys) {
    const char* rows[kTileKeys];
    const int64_t n = std::min(kTileKeys, d - c);
    for (int64_t i = 0; i < n; ++i)
      rows[i] = reinterpret_cast<const char*>(op.covariance[head][c + i].data);
    pack_columns(n, d, DType::kF32, rows, covariance + c * d);
  }
  const float* mean = op.mean[head].data;
  for (int64_t j = op.sinks; j < n_rows; j += kTileKeys) {
    const int64_t n = std::min(kTileKeys, n_rows - j);
    for (int64_t u = 0; u < n; ++u)
      widen(key_at(kv, kv_head, j + u), kv.layout.dtype, 0, d, keys + u * d);
    product<false>(n, columns, d, keys, d, covariance, d, moved, columns);
    for (int64_t u = 0; u < n; ++u) {
      float linear = 0, quadratic = 0;
      for (int64_t c = 0; c < d; ++c) {
        linear += mean[c] * keys[u * d + c];
        quadratic += moved[u * columns + c] * keys[u * d + c];
      }
      p[j + u] = op.scale * linear + op.scale * op.scale / 2 * quadratic;
    }
  }
  if (op.sinks >= n_rows) return;
  const float top = *std::max_element(p + op.sinks, p + n_rows);
  double sum = 0;
  for (int64_t j = op.sinks; j < n_rows; ++j) sum += p[j] = std::exp(p[j] - top);
  for (int64_t j = op.sinks; j < n_rows; ++j) p[j] = static_cast<float>(p[j] / sum);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(multiply_tile);
HWY_EXPORT(merge_tiles);
HWY_EXPORT(add_tile);
HWY_EXPORT(expect_scratch);
HWY_EXPORT(expect_head);

float norm_of_value(const KvLayer& kv, int64_t head, int64_t row) {
  const char* value = value_at(kv, head, row);
  double sum = 0;
  for (int64_t c = 0; c < kv.layout.head_dim; ++c) {
    const double x = load_number(value, kv.layout.dtype, c);
    sum += x * x;
  }
  return static_cast<float>(std::sqrt(sum));
}

}  // namespace

// One head after the other, its keys shared out: a few queries' probabilities for all of them are
// held at a time, relative to the highest score of their tile until all tiles are known.
void CpuBackend::run(const Vote& op) {
  check(op);
  constexpr int64_t kQueries = VoteTile::kQueries;
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim, n_heads = op.window.cols / d, w = op.n_queries;
  const int64_t group = n_heads / kv.n_kv_heads(), per_row = n_heads / op.votes.dim(0);
  const int64_t longest = kv.rows_bound, most_tiles = (longest + kTileKeys - 1) / kTileKeys;
  const bool highest = op.over_queries == GroupReduce::kMax;
  constexpr auto kTileFloats = static_cast<int64_t>(sizeof(VoteTile) / sizeof(float));
  auto* tiles = scratch_.get<VoteTile>(
      most_tiles +
      (longest + kTileKeys + kQueries * (d + 2) + n_threads_ * kTileKeys * d) / kTileFloats + 1);
  float* votes = tiles[most_tiles].p[0];
  float *q = votes + longest + kTileKeys, *top = q + kQueries * d, *inverse = top + kQueries;
  float* panels = inverse + kQueries;
  const View<float, 2> window = rows_of(op.window);
  const float scale = op.scale * 1.44269504f;  // scores in units of log 2

  for (int64_t h = 0; h < n_heads; ++h) {
    const int64_t n_rows = kv.n_rows[h / group], n_votes = n_rows - w;
    const int64_t n_tiles = (n_rows + kTileKeys - 1) / kTileKeys;
    std::fill_n(votes, n_votes + kTileKeys, 0.0f);
    for (int64_t first = 0; first < w; first += kQueries) {
      const int64_t n = std::min(kQueries, w - first);
      for (int64_t i = 0; i < n; ++i) {
        const float* from = window[(op.first + first + i) % op.window.rows].data + h * d;
        std::transform(from, from + d, q + i * d, [&](float x) { return scale * x; });
      }
      parallel_for(n_threads_, n_tiles, [&](int64_t t, int thread) {
        HWY_DYNAMIC_DISPATCH(multiply_tile)
        (op, h / group, first, n, t * kTileKeys, q, panels + thread * kTileKeys * d, tiles[t]);
      });
      HWY_DYNAMIC_DISPATCH(merge_tiles)(tiles, n_tiles, n, top, inverse);
      parallel_for(n_threads_, (n_votes + kTileKeys - 1) / kTileKeys, [&](int64_t t) {
        const int64_t key = t * kTileKeys, n_here = std::min(kTileKeys, n_votes - key);
        HWY_DYNAMIC_DISPATCH(add_tile)(tiles[t], n, n_here, top, inverse, highest, votes + key);
      });
    }
    float* out = op.votes[h / per_row].data;
    const bool is_first = h % per_row == 0, takes_highest = op.reduce == GroupReduce::kMax;
    const float share =
        1 / (static_cast<float>(highest ? 1 : w) * static_cast<float>(takes_highest ? 1 : per_row));
    for (int64_t j = 0; j < n_votes; ++j) {
      const float before = is_first ? 0 : out[j], vote = share * votes[j];
      out[j] = takes_highest ? std::max(before, vote) : before + vote;
    }
  }
}

void CpuBackend::run(const ExpectVotes& op) {
  check(op);
  const KvLayer& kv = op.kv;
  const int64_t n_heads = op.mean.dim(0), group = n_heads / kv.n_kv_heads();
  const int64_t longest = kv.rows_bound;
  const int64_t per_thread = HWY_DYNAMIC_DISPATCH(expect_scratch)(kv.layout.head_dim);
  float* p = scratch_.get<float>(n_heads * longest + n_threads_ * per_thread);  // by query head
  float* scratch = p + n_heads * longest;
  parallel_for(n_threads_, n_heads, [&](int64_t h, int thread) {
    HWY_DYNAMIC_DISPATCH(expect_head)(op, h, p + h * longest, scratch + thread * per_thread);
  });
  parallel_for(n_threads_, kv.n_kv_heads(), [&](int64_t k) {
    const int64_t n = kv.n_rows[k], sinks = std::min(op.sinks, n);
    float* votes = op.votes[k].data;
    float highest = 0;
    for (int64_t j = sinks; j < n; ++j) {
      float sum = 0;
      for (int64_t g = 0; g < group; ++g) sum += p[(k * group + g) * longest + j];
      votes[j] = sum / static_cast<float>(group) * norm_of_value(kv, k, j);
      highest = std::max(highest, votes[j]);
    }
    std::fill_n(votes, sinks, highest);
  });
}

}  // namespace ei::cpu
#endif
