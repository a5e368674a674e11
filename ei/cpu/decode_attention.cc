#include "ei/ops/decode_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/decode_attention.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Vector i of a row of the cache.
template <DType kType>
HWY_INLINE V32 load_row(const char* row, int64_t i) {
  const F32 d;
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(row) + i);
  } else {
    const hn::Rebind<uint16_t, F32> dh;
    const hn::RebindToUnsigned<F32> du;
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(
                              du, hn::LoadU(dh, reinterpret_cast<const uint16_t*>(row) + i))));
  }
}

// score[g][j] = q_g . k_j for kN queries d apart and n rows of a page, which are read once.
template <DType kType, int kN>
void dot_page(const char* rows, int64_t n, int64_t d, const float* q, float* score) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t row_bytes = d * dtype_bytes(kType);
  for (int64_t j = 0; j < n; ++j) {
    const char* row = rows + j * row_bytes;
    V32 sum[kN];
    HWY_UNROLL(4)
    for (int g = 0; g < kN; ++g) sum[g] = hn::Zero(df);
    int64_t c = 0;
    for (; c + lanes <= d; c += lanes) {
      const V32 k = load_row<kType>(row, c);
      HWY_UNROLL(4)
      for (int g = 0; g < kN; ++g) sum[g] = hn::MulAdd(k, hn::LoadU(df, q + g * d + c), sum[g]);
    }
    HWY_UNROLL(4)
    for (int g = 0; g < kN; ++g) {
      float total = hn::GetLane(hn::SumOfLanes(df, sum[g]));
      for (int64_t r = c; r < d; ++r) total += q[g * d + r] * load(row, kType, r);
      score[g * kTileKeys + j] = total;
    }
  }
}

// out_g = factor_g out_g + sum_j p[g][j] v_j.
template <DType kType, int kN>
void add_page(const char* rows, int64_t n, int64_t d, const float* p, const float* factor,
              float* out) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t row_bytes = d * dtype_bytes(kType);
  int64_t c = 0;
  for (; c + lanes <= d; c += lanes) {
    V32 sum[kN];
    HWY_UNROLL(4)
    for (int g = 0; g < kN; ++g)
      sum[g] = hn::Mul(hn::LoadU(df, out + g * d + c), hn::Set(df, factor[g]));
    for (int64_t j = 0; j < n; ++j) {
      const V32 v = load_row<kType>(rows + j * row_bytes, c);
      HWY_UNROLL(4)
      for (int g = 0; g < kN; ++g)
        sum[g] = hn::MulAdd(v, hn::Set(df, p[g * kTileKeys + j]), sum[g]);
    }
    HWY_UNROLL(4)
    for (int g = 0; g < kN; ++g) hn::StoreU(sum[g], df, out + g * d + c);
  }
  for (; c < d; ++c)
    for (int g = 0; g < kN; ++g) {
      float total = out[g * d + c] * factor[g];
      for (int64_t j = 0; j < n; ++j)
        total += p[g * kTileKeys + j] * load(rows + j * row_bytes, kType, c);
      out[g * d + c] = total;
    }
}

// Attention of kN queries, each scaled, to rows [begin, end) of a head: unnormalised outputs, and
// the maximum and sum of each.
template <DType kType, int kN>
void attend_rows(const KvLayer& kv, int64_t head, int64_t begin, int64_t end, const float* q,
                 float* HWY_RESTRICT out, float* HWY_RESTRICT top, float* HWY_RESTRICT sum) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df)), d = kv.head_dim;
  HWY_ALIGN float score[kN * kTileKeys];
  float factor[kN];
  for (int64_t at = begin; at < end;) {
    // Tiles end where pages do, so that their rows are one run of memory.
    const int64_t page_left = kv.page_rows - at % kv.page_rows;
    const int64_t n = std::min({kTileKeys, page_left, end - at});
    dot_page<kType, kN>(key_at(kv, head, at), n, d, q, score);
    for (int g = 0; g < kN; ++g) {
      float* s = score + g * kTileKeys;
      std::fill(s + n, s + kTileKeys, -std::numeric_limits<float>::infinity());
      V32 most = hn::Set(df, top[g]);
      for (int64_t c = 0; c < kTileKeys; c += lanes) most = hn::Max(most, hn::Load(df, s + c));
      const float next = hn::GetLane(hn::MaxOfLanes(df, most));
      V32 total = hn::Zero(df);
      for (int64_t c = 0; c < kTileKeys; c += lanes) {
        const V32 p = exp_negative(hn::Sub(hn::Load(df, s + c), hn::Set(df, next)));
        hn::Store(p, df, s + c);
        total = hn::Add(total, p);
      }
      factor[g] = std::exp(top[g] - next);
      top[g] = next;
      sum[g] = sum[g] * factor[g] + hn::GetLane(hn::SumOfLanes(df, total));
    }
    add_page<kType, kN>(value_at(kv, head, at), n, d, score, factor, out);
    at += n;
  }
}

template <DType kType>
void attend_rows(const KvLayer& kv, int64_t head, int64_t begin, int64_t end, int64_t group,
                 const float* q, float* out, float* top, float* sum) {
  const int64_t d = kv.head_dim;
  for (int64_t g = 0; g < group; g += 4) {
    const float* from = q + g * d;
    float* to = out + g * d;
    switch (std::min<int64_t>(4, group - g)) {
      case 4:
        attend_rows<kType, 4>(kv, head, begin, end, from, to, top + g, sum + g);
        break;
      case 3:
        attend_rows<kType, 3>(kv, head, begin, end, from, to, top + g, sum + g);
        break;
      case 2:
        attend_rows<kType, 2>(kv, head, begin, end, from, to, top + g, sum + g);
        break;
      default:
        attend_rows<kType, 1>(kv, head, begin, end, from, to, top + g, sum + g);
        break;
    }
  }
}

void attend_range(const KvLayer& kv, int64_t head, int64_t begin, int64_t end, int64_t group,
                  const float* q, float* out, float* top, float* sum) {
  if (kv.dtype == DType::kBF16) {
    attend_rows<DType::kBF16>(kv, head, begin, end, group, q, out, top, sum);
  } else {
    attend_rows<DType::kF32>(kv, head, begin, end, group, q, out, top, sum);
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(attend_range);

// Rows of one task. Tasks do not depend on the number of threads, so neither do the results.
constexpr int64_t kTaskRows = 2048;

}  // namespace

// A task is a range of rows of one KV head, read once for the group's queries; the partial results
// are then merged by their maxima and sums, in the order of the rows.
void CpuBackend::run(const DecodeAttention& op) {
  check(op);
  if (op.q.rows == 0) return;
  const View<float, 2> q = rows_of(op.q), out = rows_of(op.out);
  const int64_t d = op.kv[0].head_dim, n_heads = op.q.cols / d;
  int64_t longest = 1;
  for (const KvLayer& kv : op.kv) longest = std::max(longest, kv.rows_bound);
  const int64_t n_ranges = (longest + kTaskRows - 1) / kTaskRows;
  const int64_t n = op.q.rows * n_heads;  // queries

  float* scaled = scratch_.get<float>(n * d + n * n_ranges * (d + 2));
  float* parts = scaled + n * d;           // [n, n_ranges, d]: of a range, the group's side by side
  float* tops = parts + n * n_ranges * d;  // the same without d
  float* sums = tops + n * n_ranges;
  for (int64_t i = 0; i < n * d; ++i) scaled[i] = op.scale * q.data[i];
  std::fill_n(parts, n * n_ranges * d, 0.0f);
  std::fill_n(tops, n * n_ranges, -std::numeric_limits<float>::infinity());
  std::fill_n(sums, n * n_ranges, 0.0f);

  parallel_for(n_threads_, op.q.rows * n_heads * n_ranges, [&](int64_t task) {
    const int64_t i = task / (n_heads * n_ranges), head = task / n_ranges % n_heads;
    const KvLayer& kv = op.kv[static_cast<size_t>(i)];
    if (head >= kv.n_kv_heads()) return;
    const int64_t group = n_heads / kv.n_kv_heads(), range = task % n_ranges;
    const int64_t end = std::min<int64_t>((range + 1) * kTaskRows, kv.n_rows[head]);
    if (range * kTaskRows >= end) return;
    const int64_t first = i * n_heads + head * group;
    const int64_t at = first * n_ranges + range * group;
    HWY_DYNAMIC_DISPATCH(attend_range)
    (kv, head, range * kTaskRows, end, group, scaled + first * d, parts + at * d, tops + at,
     sums + at);
  });

  for (int64_t i = 0; i < op.q.rows; ++i) {
    const int64_t group = n_heads / op.kv[static_cast<size_t>(i)].n_kv_heads();
    for (int64_t h = 0; h < n_heads; ++h) {
      const int64_t first = (i * n_heads + h / group * group) * n_ranges + h % group;
      float* to = out[i].data + h * d;
      std::fill_n(to, d, 0.0f);
      float top = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int64_t r = 0; r < n_ranges; ++r) top = std::max(top, tops[first + r * group]);
      for (int64_t r = 0; r < n_ranges; ++r) {
        const int64_t part = first + r * group;
        const float factor = std::exp(tops[part] - top);
        sum += sums[part] * factor;
        for (int64_t c = 0; c < d; ++c) to[c] += factor * parts[part * d + c];
      }
      for (int64_t c = 0; c < d; ++c) to[c] /= sum;
    }
  }
}

}  // namespace ei::cpu
#endif
