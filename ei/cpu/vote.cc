#include "ei/ops/vote.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ei/cpu/amx.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"
#include "ei/cpu/vote_tile.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/vote.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/amx-inl.h"
#include "ei/cpu/tile-inl.h"

#ifndef EI_CPU_VOTE_ONCE_
#define EI_CPU_VOTE_ONCE_
namespace ei::cpu {

// A few queries of a head, times the scale in units of log 2.
struct VoteQueries {
  int64_t first, n;       // of the window
  const float* numbers;   // [n, d]
  const uint16_t* parts;  // for the tile unit: [2, VoteTile::kQueries, d], bf16 and what is missing
};

}  // namespace ei::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

void split_queries(const float* HWY_RESTRICT numbers, int64_t n, uint16_t* HWY_RESTRICT parts) {
  for (int64_t i = 0; i < n; ++i) {
    parts[i] = to_bf16(numbers[i]);
    parts[n + i] = to_bf16(numbers[i] - from_bf16(parts[i]));
  }
}

// Scores of all queries and n keys in bf16, whose d numbers fill registers; some columns more are
// written. Keys are the second factor, queries the first in their two parts.
template <class Unit>
void multiply_tile_by_unit(const uint16_t* queries, int64_t d, int64_t n, const char* const* keys,
                           uint32_t* HWY_RESTRICT pairs, float* HWY_RESTRICT scores) {
  static_assert(VoteTile::kQueries == 2 * kAmxRows);
  const int64_t depth = d / kAmxDepth, bytes = d * int64_t{sizeof(uint16_t)};
  Unit::begin();
  for (int64_t j = 0; j < n; j += kAmxRows) {
    const uint16_t* rows[kAmxRows];
    for (int64_t i = 0; i < kAmxRows; ++i)
      rows[i] = reinterpret_cast<const uint16_t*>(keys[std::min(j + i, n - 1)]);
    Unit::template zero<0>();
    Unit::template zero<1>();
    for (int64_t t = 0; t < depth; ++t) {
      uint32_t* const tile = pairs + t * kAmxTile / 2;
      pack_pairs(rows, t * kAmxDepth, tile);
      Unit::template load<6>(tile, kAmxRowBytes);
      for (int64_t part = 0; part < 2; ++part) {
        const uint16_t* at = queries + part * VoteTile::kQueries * d + t * kAmxDepth;
        Unit::template load<4>(at, bytes);
        Unit::template multiply<0, 4, 6>();
        Unit::template load<5>(at + kAmxRows * d, bytes);
        Unit::template multiply<1, 5, 6>();
      }
    }
    constexpr int64_t kStride = kTileKeys * sizeof(float);
    Unit::template store<0>(scores + j, kStride);
    Unit::template store<1>(scores + kAmxRows * kTileKeys + j, kStride);
  }
  Unit::end();
}

// The queries against the tile of keys from `key` on. panels: room for the keys and, in L1, for
// scores, so that the tile, which is not, is written once.
void multiply_tile(Tiles tiles, const Vote& op, int64_t kv_head, const VoteQueries& q, int64_t key,
                   float* HWY_RESTRICT panels, VoteTile& out) {
  const F32 df;
  const int64_t first = q.first, n = q.n;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim, n_rows = kv.n_rows[kv_head];
  const int64_t n_tile = std::min(kTileKeys, n_rows - key), columns = full_panels(n_tile);
  const char* keys[kTileKeys];
  for (int64_t u = 0; u < n_tile; ++u) keys[u] = key_at(kv, kv_head, key + u);
  float* const scores = panels + kTileKeys * d;
  if (q.parts != nullptr) {
    auto* const pairs = reinterpret_cast<uint32_t*>(panels);
    tiles == Tiles::kAmx
        ? multiply_tile_by_unit<Amx>(q.parts, d, n_tile, keys, pairs, scores)
        : multiply_tile_by_unit<EmulatedAmx>(q.parts, d, n_tile, keys, pairs, scores);
  } else {
    pack_columns(n_tile, d, kv.layout.dtype, keys, panels);
    product<false>(n, columns, d, q.numbers, d, panels, d, scores, kTileKeys);
  }
  for (int64_t i = 0; i < n; ++i) {
    float *s = scores + i * kTileKeys, *p = out.p[i];
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
      const V32 x = exp2_negative(hn::Sub(hn::LoadU(df, s + c), most));
      hn::StoreU(x, df, p + c);
      total = hn::Add(total, x);
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

// x^T M x of the rows x of a cache, a tile of them at a time, for a symmetric M [d, d].
class QuadraticForms {
 public:
  static int64_t scratch(int64_t d) { return kTileKeys * d + full_panels(d) * (kTileKeys + d); }

  QuadraticForms(const View<const float, 2>& matrix, float* memory)
      : d_(matrix.dim(0)),
        columns_(full_panels(d_)),
        rows_(memory),
        moved_(rows_ + kTileKeys * d_),
        panels_(moved_ + kTileKeys * columns_) {
    for (int64_t c = 0; c < d_; c += kTileKeys) {
      const char* rows[kTileKeys];
      const int64_t n = std::min(kTileKeys, d_ - c);
      for (int64_t i = 0; i < n; ++i) rows[i] = reinterpret_cast<const char*>(matrix[c + i].data);
      pack_columns(n, d_, DType::kF32, rows, panels_ + c * d_);
    }
  }

  // Of n <= kTileKeys rows, row u at at(u).
  template <class At>
  void of(int64_t n, DType type, const At& at, float* out) {
    for (int64_t u = 0; u < n; ++u) widen(at(u), type, 0, d_, rows_ + u * d_);
    product<false>(n, columns_, d_, rows_, d_, panels_, d_, moved_, columns_);
    for (int64_t u = 0; u < n; ++u)
      out[u] = std::inner_product(row(u), row(u) + d_, moved_ + u * columns_, 0.0f);
  }
  const float* row(int64_t u) const { return rows_ + u * d_; }  // as floats

 private:
  int64_t d_, columns_;
  float *rows_, *moved_;  // [kTileKeys, d]; times M: [kTileKeys, columns]
  float* panels_;         // M
};

int64_t forms_scratch(int64_t d) { return QuadraticForms::scratch(d) + 64; }

// Probabilities of the rows of one query head's KV head that are no sinks.
void expect_head(const ExpectVotes& op, int64_t head, float* HWY_RESTRICT p,
                 float* HWY_RESTRICT scratch) {
  const KvLayer& kv = op.kv;
  const int64_t d = kv.layout.head_dim;
  const int64_t kv_head = head / (op.mean.dim(0) / kv.n_kv_heads()), n_rows = kv.n_rows[kv_head];
  QuadraticForms forms(op.covariance[head], scratch);
  const float* mean = op.mean[head].data;
  for (int64_t j = op.sinks; j < n_rows; j += kTileKeys) {
    const int64_t n = std::min(kTileKeys, n_rows - j);
    forms.of(
        n, kv.layout.dtype, [&](int64_t u) { return key_at(kv, kv_head, j + u); }, p + j);
    for (int64_t u = 0; u < n; ++u)
      p[j + u] = op.scale * std::inner_product(mean, mean + d, forms.row(u), 0.0f) +
                 op.scale * op.scale / 2 * p[j + u];
  }
  if (op.sinks >= n_rows) return;
  const float top = *std::max_element(p + op.sinks, p + n_rows);
  double sum = 0;
  for (int64_t j = op.sinks; j < n_rows; ++j) sum += p[j] = std::exp(p[j] - top);
  for (int64_t j = op.sinks; j < n_rows; ++j) p[j] = static_cast<float>(p[j] / sum);
}

void value_norms_of_head(const ValueNorms& op, int64_t head, float* HWY_RESTRICT scratch) {
  const KvLayer& kv = op.kv;
  const int64_t kv_head = head / (op.gram.dim(0) / kv.n_kv_heads()), n_rows = kv.n_rows[kv_head];
  QuadraticForms forms(op.gram[head], scratch);
  float* norms = op.norms[head].data;
  for (int64_t j = 0; j < n_rows; j += kTileKeys)
    forms.of(
        std::min(kTileKeys, n_rows - j), kv.layout.dtype,
        [&](int64_t u) { return value_at(kv, kv_head, j + u); }, norms + j);
  for (int64_t j = 0; j < n_rows; ++j) norms[j] = std::sqrt(std::max(0.0f, norms[j]));
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(split_queries);
HWY_EXPORT(multiply_tile);
HWY_EXPORT(merge_tiles);
HWY_EXPORT(add_tile);
HWY_EXPORT(forms_scratch);
HWY_EXPORT(expect_head);
HWY_EXPORT(value_norms_of_head);

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
  const int64_t per_thread = kTileKeys * (d + kQueries);
  auto* tiles = scratch_.get<VoteTile>(
      most_tiles +
      (longest + kTileKeys + kQueries * (2 * d + 2) + n_threads_ * per_thread) / kTileFloats + 1);
  float* votes = tiles[most_tiles].p[0];
  float *q = votes + longest + kTileKeys, *top = q + kQueries * d, *inverse = top + kQueries;
  float *parts = inverse + kQueries, *panels = parts + kQueries * d;
  auto* split = reinterpret_cast<uint16_t*>(parts);
  const bool by_unit =
      tiles_ != Tiles::kNone && kv.layout.dtype == DType::kBF16 && d % kAmxDepth == 0;
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
      std::fill(q + n * d, q + kQueries * d, 0.0f);
      if (by_unit) HWY_DYNAMIC_DISPATCH(split_queries)(q, kQueries * d, split);
      const VoteQueries queries = {first, n, q, by_unit ? split : nullptr};
      parallel_for(n_threads_, n_tiles, [&](int64_t t, int thread) {
        HWY_DYNAMIC_DISPATCH(multiply_tile)
        (tiles_, op, h / group, queries, t * kTileKeys, panels + thread * per_thread, tiles[t]);
      });
      HWY_DYNAMIC_DISPATCH(merge_tiles)(tiles, n_tiles, n, top, inverse);
      if (op.query_weights.data != nullptr)
        for (int64_t i = 0; i < n; ++i) inverse[i] *= op.query_weights[first + i];
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
      const float weight = op.row_weights.data == nullptr ? 1 : op.row_weights[h][j];
      const float before = is_first ? 0 : out[j], vote = share * weight * votes[j];
      out[j] = takes_highest ? std::max(before, vote) : before + vote;
    }
  }
}

void CpuBackend::run(const ExpectVotes& op) {
  check(op);
  const KvLayer& kv = op.kv;
  const int64_t n_heads = op.mean.dim(0), group = n_heads / kv.n_kv_heads();
  const int64_t longest = kv.rows_bound;
  const int64_t per_thread = HWY_DYNAMIC_DISPATCH(forms_scratch)(kv.layout.head_dim);
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

void CpuBackend::run(const ValueNorms& op) {
  check(op);
  const int64_t per_thread = HWY_DYNAMIC_DISPATCH(forms_scratch)(op.kv.layout.head_dim);
  auto* scratch = scratch_.get<float>(n_threads_ * per_thread);
  parallel_for(n_threads_, op.gram.dim(0), [&](int64_t h, int thread) {
    HWY_DYNAMIC_DISPATCH(value_norms_of_head)(op, h, scratch + thread * per_thread);
  });
}

}  // namespace ei::cpu
#endif
