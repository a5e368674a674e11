#include "ei/ops/decode_attention.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

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

// Rows are read in steps of two vectors of floats. A step of bf16 is one vector of pairs, taken
// apart into even and odd elements; queries and outputs are kept in that order, too. The scale of a
// row of q8_0 is its score's or its probability's.
//
// The query heads of a KV head go through the rows in teams of 4, 2 or 1, a team of 3 filled up
// with a query of zeros. Score j * kTeam + g is that of head g for row j of a tile, so that what is
// one head's is in every kTeam-th lane. A team's queries, and its outputs, are
// [steps of d, kTeam, 2 vectors].
constexpr int64_t kMaxTeam = HWY_TARGET == HWY_SCALAR ? 1 : 4;  // no more than lanes

HWY_INLINE int64_t step_size() { return 2 * static_cast<int64_t>(hn::Lanes(F32())); }

int64_t padded_dim(int64_t d) { return (d + step_size() - 1) / step_size() * step_size(); }

// Where element c of head g of a team is.
HWY_INLINE int64_t element_at(DType type, int64_t team, int64_t g, int64_t c) {
  const int64_t step = step_size(), i = c % step;
  const int64_t lane = type != DType::kBF16 ? i : i / 2 + i % 2 * (step / 2);
  return (c / step * team + g) * step + lane;
}

struct Step {
  V32 a, b;
};

// Elements [c, c + step) of a row of d, without its scale, zeros behind its end.
template <DType kType>
HWY_INLINE Step load_step(const char* row, int64_t c, int64_t d) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  HWY_ALIGN char last[2 * sizeof(float) * hn::MaxLanes(df)];
  const char* from = row + PageLayout::numbers_at(kType) + c * dtype_bytes(kType);
  if (HWY_UNLIKELY(c + 2 * lanes > d)) {
    std::memset(last, 0, sizeof(last));
    std::memcpy(last, from, static_cast<size_t>((d - c) * dtype_bytes(kType)));
    from = last;
  }
  if constexpr (kType == DType::kF32) {
    const auto* values = reinterpret_cast<const float*>(from);
    return {hn::LoadU(df, values), hn::LoadU(df, values + lanes)};
  } else if constexpr (kType == DType::kQ8) {
    const hn::Rebind<int8_t, F32> d8;
    const hn::RebindToSigned<F32> di;
    const auto* numbers = reinterpret_cast<const int8_t*>(from);
    return {hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, numbers))),
            hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, numbers + lanes)))};
  } else {
#if HWY_TARGET == HWY_SCALAR
    return {hn::Set(df, load(from, kType, 0)), hn::Set(df, load(from, kType, 1))};
#else
    const hn::RebindToUnsigned<F32> du;
    const auto pairs = hn::LoadU(du, reinterpret_cast<const uint32_t*>(from));
    return {hn::BitCast(df, hn::ShiftLeft<16>(pairs)),
            hn::BitCast(df, hn::And(pairs, hn::Set(du, 0xffff0000u)))};
#endif
  }
}

// The sums of the lanes of each of eight vectors.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void store_sums(const V32* v, float* to) {
  for (int i = 0; i < 8; ++i) to[i] = hn::GetLane(v[i]);
}
#else
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> add_blocks(D, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return add_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}

// The sums of the lanes of each of four vectors.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> sums_of_four(const V32* v) {
  const F32 d;
  const hn::RepartitionToWide<F32> dd;
  const V32 x = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const V32 y = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto wide_x = hn::BitCast(dd, x), wide_y = hn::BitCast(dd, y);
  return add_blocks(d, hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, wide_x, wide_y)),
                               hn::BitCast(d, hn::InterleaveUpper(dd, wide_x, wide_y))));
}

HWY_INLINE void store_sums(const V32* v, float* to) {
  const hn::FixedTag<float, 4> d;
  hn::StoreU(sums_of_four(v), d, to);
  hn::StoreU(sums_of_four(v + 4), d, to + 4);
}
#endif

// Scores of a team for n rows of a page, and on the way some memory that is needed soon.
template <DType kType, int64_t kTeam>
void dot_rows(const char* rows, int64_t n, int64_t d, const float* HWY_RESTRICT q,
              float* HWY_RESTRICT score, const char* soon) {
  constexpr int64_t kAtOnce = 8 / kTeam;  // rows
  const F32 df;
  const int64_t row_bytes = PageLayout::row_bytes(kType, d);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df)), step = 2 * lanes;
  for (int64_t j = 0; j < n; j += kAtOnce) {
    const char* row[kAtOnce];
    V32 sum[8];
    HWY_UNROLL(8)
    for (int64_t r = 0; r < kAtOnce; ++r) row[r] = rows + std::min(j + r, n - 1) * row_bytes;
    HWY_UNROLL(8)
    for (int64_t i = 0; i < 8; ++i) sum[i] = hn::Zero(df);
    for (int64_t at = 0; at < kAtOnce * row_bytes; at += 64)
      hwy::Prefetch(soon + j * row_bytes + at);
    const float* x = q;
    for (int64_t c = 0; c < d; c += step) {
      Step k[kAtOnce];
      HWY_UNROLL(8)
      for (int64_t r = 0; r < kAtOnce; ++r) k[r] = load_step<kType>(row[r], c, d);
      HWY_UNROLL(4)
      for (int64_t g = 0; g < kTeam; ++g, x += step) {
        const V32 a = hn::Load(df, x), b = hn::Load(df, x + lanes);
        HWY_UNROLL(8)
        for (int64_t r = 0; r < kAtOnce; ++r)
          sum[r * kTeam + g] = hn::MulAdd(a, k[r].a, sum[r * kTeam + g]);
        HWY_UNROLL(8)
        for (int64_t r = 0; r < kAtOnce; ++r)
          sum[r * kTeam + g] = hn::MulAdd(b, k[r].b, sum[r * kTeam + g]);
      }
    }
    store_sums(sum, score + j * kTeam);
    if constexpr (kType == DType::kQ8)
      for (int64_t i = 0; i < 8; ++i) score[j * kTeam + i] *= scale_of(row[i / kTeam]);
  }
}

// out_g = factor_g out_g + sum_j p_gj v_j of a team, and some memory that is needed soon.
template <DType kType, int64_t kTeam>
void add_rows(const char* rows, int64_t n, int64_t d, const float* HWY_RESTRICT p,
              const float* HWY_RESTRICT factor, float* HWY_RESTRICT out, const char* soon) {
  const F32 df;
  const int64_t row_bytes = PageLayout::row_bytes(kType, d);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df)), step = 2 * lanes;
  const int64_t step_bytes = step * dtype_bytes(kType);
  for (int64_t c = 0; c < d; c += step, out += kTeam * step) {
    V32 a[kTeam], b[kTeam];
    HWY_UNROLL(4)
    for (int64_t g = 0; g < kTeam; ++g) {
      const V32 f = hn::Set(df, factor[g]);
      a[g] = hn::Mul(hn::Load(df, out + g * step), f);
      b[g] = hn::Mul(hn::Load(df, out + g * step + lanes), f);
    }
    for (int64_t j = 0; j < n; ++j) {
      hwy::Prefetch(soon + j * step_bytes);
      const Step v = load_step<kType>(rows + j * row_bytes, c, d);
      HWY_UNROLL(4)
      for (int64_t g = 0; g < kTeam; ++g) {
        const V32 x = hn::Set(df, p[j * kTeam + g]);
        a[g] = hn::MulAdd(x, v.a, a[g]);
        b[g] = hn::MulAdd(x, v.b, b[g]);
      }
    }
    soon += n * step_bytes;
    HWY_UNROLL(4)
    for (int64_t g = 0; g < kTeam; ++g) {
      hn::Store(a[g], df, out + g * step);
      hn::Store(b[g], df, out + g * step + lanes);
    }
  }
}

// Online softmax of the scores of n rows, in units of log 2. Replaces them by probabilities
// relative to the maxima so far and returns the factors that make older ones so. top: the same in
// all lanes of a head; sum: to be added up over them.
template <int64_t kTeam>
V32 softmax_rows(int64_t n, float* HWY_RESTRICT score, float* HWY_RESTRICT top,
                 float* HWY_RESTRICT sum) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df)), n_scores = n * kTeam;
  const int64_t end = (n_scores + lanes - 1) / lanes * lanes;
  std::fill(score + n_scores, score + end, -std::numeric_limits<float>::infinity());
  const V32 before = hn::Load(df, top);
  V32 most = before;
  for (int64_t c = 0; c < end; c += lanes) most = hn::Max(most, hn::Load(df, score + c));
  hn::Store(most, df, top);
  for (int64_t i = kTeam; i < lanes; ++i) top[i % kTeam] = std::max(top[i % kTeam], top[i]);
  for (int64_t i = kTeam; i < lanes; ++i) top[i] = top[i % kTeam];
  most = hn::Load(df, top);
  const V32 factor = exp2_negative(hn::Sub(before, most));
  V32 total = hn::Mul(hn::Load(df, sum), factor);
  for (int64_t c = 0; c < end; c += lanes) {
    const V32 p = exp2_negative(hn::Sub(hn::Load(df, score + c), most));
    hn::Store(p, df, score + c);
    total = hn::Add(total, p);
  }
  hn::Store(total, df, sum);
  return factor;
}

// Calls f(team, g, n) for every team of a group: its size, a constant, and its heads [g, g + n).
template <class F>
HWY_INLINE void for_teams(int64_t group, const F& f) {
  int64_t g = 0;
  if constexpr (kMaxTeam == 4) {
    for (; group - g > 2; g += 4)
      f(std::integral_constant<int64_t, 4>(), g, std::min<int64_t>(4, group - g));
    for (; group - g == 2; g += 2) f(std::integral_constant<int64_t, 2>(), g, int64_t{2});
  }
  for (; g < group; ++g) f(std::integral_constant<int64_t, 1>(), g, int64_t{1});
}

// Floats of scratch for a range of rows of a KV head.
int64_t decode_scratch(int64_t group, int64_t d) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(F32()));
  return (group + 3) / 4 * 4 * (2 * padded_dim(d) + kTileKeys + 3 * lanes);
}

// Attention of a group of queries to rows [begin, end) of a head: outputs that are not normalised,
// and the maximum, in units of log 2, and the sum of each.
template <DType kType>
void attend_rows(const KvLayer& kv, int64_t head, int64_t begin, int64_t end, int64_t group,
                 float scale, const float* queries, float* outputs, float* tops, float* sums,
                 float* HWY_RESTRICT scratch) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const int64_t d = kv.layout.head_dim, width = padded_dim(d), n_heads = (group + 3) / 4 * 4;
  float *q = scratch, *out = q + n_heads * width, *score = out + n_heads * width;
  float *top = score + n_heads * kTileKeys, *sum = top + n_heads * lanes;  // [n_heads, lanes]
  float* factor = sum + n_heads * lanes;
  std::fill_n(q, 2 * n_heads * width, 0.0f);
  std::fill_n(top, n_heads * lanes, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, n_heads * lanes, 0.0f);
  for_teams(group, [&](auto team, int64_t g, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < d; ++c)
        q[g * width + element_at(kType, team, i, c)] = scale * queries[(g + i) * d + c];
  });

  const char* keys = key_at(kv, head, begin);
  for (int64_t at = begin; at < end;) {
    // Tiles end where pages do, so that their rows are one run of memory.
    const int64_t n = std::min({kTileKeys, kv.layout.rows - at % kv.layout.rows, end - at});
    const char* values = value_at(kv, head, at);
    at += n;
    const char* next = at < end ? key_at(kv, head, at) : keys;
    for_teams(group, [&](auto team, int64_t g, int64_t) {
      dot_rows<kType, team>(keys, n, d, q + g * width, score + g * kTileKeys, values);
      hn::Store(softmax_rows<team>(n, score + g * kTileKeys, top + g * lanes, sum + g * lanes), df,
                factor + g * lanes);
    });
    for_teams(group, [&](auto team, int64_t g, int64_t) {
      if constexpr (kType == DType::kQ8)
        for (int64_t i = 0; i < n * team; ++i)
          score[g * kTileKeys + i] *= scale_of(values + i / team * kv.layout.row_bytes());
      add_rows<kType, team>(values, n, d, score + g * kTileKeys, factor + g * lanes,
                            out + g * width, next);
    });
    keys = next;
  }

  for_teams(group, [&](auto team, int64_t g, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < d; ++c)
        outputs[(g + i) * d + c] = out[g * width + element_at(kType, team, i, c)];
      tops[g + i] = top[g * lanes + i];
      sums[g + i] = 0;
      for (int64_t lane = i; lane < lanes; lane += team) sums[g + i] += sum[g * lanes + lane];
    }
  });
}

void attend_range(const KvLayer& kv, int64_t head, int64_t begin, int64_t end, int64_t group,
                  float scale, const float* q, float* out, float* tops, float* sums,
                  float* scratch) {
  if (kv.layout.dtype == DType::kBF16) {
    attend_rows<DType::kBF16>(kv, head, begin, end, group, scale, q, out, tops, sums, scratch);
  } else if (kv.layout.dtype == DType::kQ8) {
    attend_rows<DType::kQ8>(kv, head, begin, end, group, scale, q, out, tops, sums, scratch);
  } else {
    attend_rows<DType::kF32>(kv, head, begin, end, group, scale, q, out, tops, sums, scratch);
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(decode_scratch);
HWY_EXPORT(attend_range);

// Rows of one task. Tasks do not depend on the number of threads, so neither do the results.
constexpr int64_t kTaskRows = 2048;

struct Task {
  int64_t n_rows;
  int32_t sequence, head, range;
};

}  // namespace

// A task is a range of rows of one KV head, read once for the group's queries; the partial results
// are then merged by their maxima and sums, in the order of the rows.
void CpuBackend::run(const DecodeAttention& op) {
  check(op);
  if (op.q.rows == 0) return;
  const View<float, 2> q = rows_of(op.q), out = rows_of(op.out);
  const int64_t d = op.kv[0].layout.head_dim, n_heads = op.q.cols / d;
  int64_t longest = 1, largest = 1;
  for (const KvLayer& kv : op.kv) {
    longest = std::max(longest, kv.rows_bound);
    largest = std::max(largest, n_heads / kv.n_kv_heads());
  }
  const int64_t n_ranges = (longest + kTaskRows - 1) / kTaskRows;
  const int64_t n = op.q.rows * n_heads;  // queries

  const int64_t per_thread = HWY_DYNAMIC_DISPATCH(decode_scratch)(largest, d);
  const int64_t n_floats = n_threads_ * per_thread + n * n_ranges * (d + 2);
  float* scratch =
      scratch_.get<float>(n_floats + 2 + n * n_ranges * int64_t{sizeof(Task) / sizeof(float)});
  float* parts = scratch + n_threads_ * per_thread;  // [n, n_ranges, d]: a group's side by side
  float* tops = parts + n * n_ranges * d;            // the same without d
  float* sums = tops + n * n_ranges;

  // The longest first, so that the threads end together.
  auto* tasks = reinterpret_cast<Task*>(scratch + (n_floats + 1) / 2 * 2);
  int64_t n_tasks = 0;
  for (int32_t i = 0; i < op.q.rows; ++i) {
    const KvLayer& kv = op.kv[static_cast<size_t>(i)];
    for (int32_t head = 0; head < kv.n_kv_heads(); ++head)
      for (int32_t range = 0; range * kTaskRows < kv.n_rows[head]; ++range)
        tasks[n_tasks++] = {std::min(kTaskRows, kv.n_rows[head] - range * kTaskRows), i, head,
                            range};
  }
  std::sort(tasks, tasks + n_tasks, [](const Task& a, const Task& b) {
    return std::tie(b.n_rows, a.sequence, a.head, a.range) <
           std::tie(a.n_rows, b.sequence, b.head, b.range);
  });
  parallel_for(n_threads_, n_tasks, [&](int64_t t, int thread) {
    const Task& task = tasks[t];
    const KvLayer& kv = op.kv[static_cast<size_t>(task.sequence)];
    const int64_t group = n_heads / kv.n_kv_heads(), begin = task.range * kTaskRows;
    const int64_t at =
        (task.sequence * n_heads + task.head * group) * n_ranges + task.range * group;
    HWY_DYNAMIC_DISPATCH(attend_range)
    (kv, task.head, begin, begin + task.n_rows, group, op.scale * 1.44269504f,
     q[task.sequence].data + task.head * group * d, parts + at * d, tops + at, sums + at,
     scratch + thread * per_thread);
  });

  for (int64_t i = 0; i < op.q.rows; ++i) {
    const KvLayer& kv = op.kv[static_cast<size_t>(i)];
    const int64_t group = n_heads / kv.n_kv_heads();
    for (int64_t h = 0; h < n_heads; ++h) {
      const int64_t first = (i * n_heads + h / group * group) * n_ranges + h % group;
      const int64_t n_parts = (kv.n_rows[h / group] + kTaskRows - 1) / kTaskRows;
      float* to = out[i].data + h * d;
      std::fill_n(to, d, 0.0f);
      float top = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int64_t r = 0; r < n_parts; ++r) top = std::max(top, tops[first + r * group]);
      for (int64_t r = 0; r < n_parts; ++r) {
        const int64_t part = first + r * group;
        const float factor = std::exp2(tops[part] - top);
        sum += sums[part] * factor;
        for (int64_t c = 0; c < d; ++c) to[c] += factor * parts[part * d + c];
      }
      for (int64_t c = 0; c < d; ++c) to[c] /= sum;
    }
  }
}

}  // namespace ei::cpu
#endif
