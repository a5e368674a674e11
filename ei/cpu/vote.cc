#include "ei/ops/vote.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/vote.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

int64_t vote_scratch(int64_t n_queries, int64_t d) {
  return kTileKeys * d + kStrip * kTileKeys + n_queries * (d + 2) + 64;
}

// Votes of one query head for all rows of its KV head. Two passes over the keys: the first finds
// every query's maximum and sum, the second adds up its probabilities, or takes the highest.
void vote_head(const Vote& op, int64_t head, float* HWY_RESTRICT votes,
               float* HWY_RESTRICT scratch) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim, w = op.n_queries;
  const int64_t kv_head = head / (op.window.cols / d / kv.n_kv_heads());
  const int64_t n_rows = kv.n_rows[kv_head], n_votes = n_rows - w;
  float *tile = scratch, *score = tile + kTileKeys * d;
  float *q = score + kStrip * kTileKeys, *top = q + w * d, *sum = top + w;
  const char* keys[kTileKeys];
  const View<float, 2> window = rows_of(op.window);
  const float scale = op.scale * 1.44269504f;  // scores in units of log 2
  for (int64_t i = 0; i < w; ++i) {
    const float* from = window[(op.first + i) % op.window.rows].data + head * d;
    for (int64_t c = 0; c < d; ++c) q[i * d + c] = scale * from[c];
  }
  std::fill_n(top, w, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, w, 0.0f);
  std::fill_n(votes, n_votes, 0.0f);

  for (const bool second : {false, true}) {
    for (int64_t j = 0; j < (second ? n_votes : n_rows); j += kTileKeys) {
      const int64_t n_tile = std::min(kTileKeys, n_rows - j), columns = full_panels(n_tile);
      for (int64_t u = 0; u < n_tile; ++u) keys[u] = key_at(kv, kv_head, j + u);
      pack_columns(n_tile, d, kv.layout.dtype, keys, tile);
      for (int64_t r = 0; r < w; r += kStrip) {
        const int64_t m = std::min(kStrip, w - r);
        product<false>(m, columns, d, q + r * d, d, tile, d, score, kTileKeys);
        for (int64_t i = 0; i < m; ++i) {
          float* s = score + i * kTileKeys;
          if (second) {
            const int64_t n = std::min(kTileKeys, n_votes - j);
            const bool highest = op.over_queries == GroupReduce::kMax;
            const float factor = 1 / (sum[r + i] * static_cast<float>(highest ? 1 : w));
            for (int64_t c = 0; c < columns; c += lanes)
              hn::StoreU(exp2_negative(hn::Sub(hn::LoadU(df, s + c), hn::Set(df, top[r + i]))), df,
                         s + c);
            for (int64_t c = 0; c < n; ++c)
              votes[j + c] =
                  highest ? std::max(votes[j + c], factor * s[c]) : votes[j + c] + factor * s[c];
            continue;
          }
          // Query i sees the rows up to its own, n_votes + i.
          const int64_t n_seen = std::clamp<int64_t>(n_votes + r + i + 1 - j, 0, n_tile);
          if (n_seen == 0) continue;
          std::fill(s + n_seen, s + columns, -std::numeric_limits<float>::infinity());
          V32 most = hn::Set(df, top[r + i]);
          for (int64_t c = 0; c < columns; c += lanes) most = hn::Max(most, hn::LoadU(df, s + c));
          const float next = hn::GetLane(hn::MaxOfLanes(df, most));
          V32 total = hn::Zero(df);
          for (int64_t c = 0; c < columns; c += lanes)
            total = hn::Add(total, exp2_negative(hn::Sub(hn::LoadU(df, s + c), hn::Set(df, next))));
          const V32 factor = exp2_negative(hn::Set(df, top[r + i] - next));
          sum[r + i] = sum[r + i] * hn::GetLane(factor) + hn::GetLane(hn::SumOfLanes(df, total));
          top[r + i] = next;
        }
      }
    }
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

HWY_EXPORT(vote_scratch);
HWY_EXPORT(vote_head);
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

void CpuBackend::run(const Vote& op) {
  check(op);
  const KvLayer& kv = op.kv;
  const int64_t n_heads = op.window.cols / kv.layout.head_dim, group = n_heads / kv.n_kv_heads();
  const int64_t longest = kv.rows_bound;
  const int64_t per_thread = HWY_DYNAMIC_DISPATCH(vote_scratch)(op.n_queries, kv.layout.head_dim);
  float* votes = scratch_.get<float>(n_heads * longest + n_threads_ * per_thread);  // by query head
  float* scratch = votes + n_heads * longest;
  parallel_for(n_threads_, n_heads, [&](int64_t h, int thread) {
    HWY_DYNAMIC_DISPATCH(vote_head)(op, h, votes + h * longest, scratch + thread * per_thread);
  });
  const int64_t per_row = n_heads / op.votes.dim(0);
  parallel_for(n_threads_, op.votes.dim(0), [&](int64_t r) {
    const int64_t n = kv.n_rows[r * per_row / group] - op.n_queries;
    float* out = op.votes[r].data;
    std::copy_n(votes + r * per_row * longest, n, out);
    for (int64_t g = 1; g < per_row; ++g) {
      const float* vote = votes + (r * per_row + g) * longest;
      for (int64_t j = 0; j < n; ++j)
        out[j] = op.reduce == GroupReduce::kMax ? std::max(out[j], vote[j]) : out[j] + vote[j];
    }
    if (op.reduce == GroupReduce::kMean)
      for (int64_t j = 0; j < n; ++j) out[j] /= static_cast<float>(per_row);
  });
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
