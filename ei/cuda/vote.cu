#include <algorithm>
#include <cmath>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/e4m3_cache.cuh"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/policy/pooling.h"

// Votes in two passes over the keys: the first finds the logarithm of every query's softmax
// denominator, the second multiplies again and adds up probabilities. Scores are never stored: of
// 128k keys they would take gigabytes. All queries of a KV head share a tile of keys, and the next
// one arrives meanwhile.
//
// A pair is a query of a query head. Every head's begin at a multiple of 8, so that 8 columns of a
// product are of one head: what is filled up has zeros for a query and no probability.
namespace ei::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;  // of a tile: keys or pairs
constexpr int kMaxDim = 256;

struct Params {
  const bf16* window;
  int64_t cols;
  int ring_rows, first;
  int n_queries, padded_queries;  // of a head
  int group, n_pairs, d;
  CacheRows rows;
  const int32_t* n_rows;
  float scale_log2;
  float2* partial;  // [n_kv_heads, splits, n_pairs] highest q k, sum of 2^(scaled score - top)
  float* log_sum;   // [n_kv_heads, n_pairs] log2 of vote_queries times the sum of 2^(scaled score)
  uint32_t* done;   // [n_kv_heads, tiles of pairs] splits finished
  // A vote adds up so many neighbouring pairs and divides by so many queries; of several for the
  // same key the highest counts, or each if there is one per query head.
  int vote_pairs, vote_queries;
  bool per_query_head;
  float* votes;
  int64_t votes_cols;
};

// Shared memory: a tile of pairs, then tiles of keys. f32 keys are split into two bf16, of e4m3 one
// tile is operands and two are bytes. kDim: d if it is known, or 0.
template <class T, int kDim>
struct Tiles {
  static constexpr int kParts = sizeof(T) == 4 ? 2 : 1;
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;

  bf16* pairs;
  int d, depth, stride;

  __device__ Tiles(unsigned char* raw, const Params& p)
      : pairs(reinterpret_cast<bf16*>(raw)),
        d(kDim > 0 ? kDim : p.d),
        depth(padded_depth(d)),
        stride(row_stride(d)) {}
  __device__ bf16* keys(int stage) const { return pairs + (1 + kParts * stage) * kRows * stride; }
  // Keys in e4m3 as they come: rows, then scales.
  __device__ unsigned char* staged(int stage) const {
    return reinterpret_cast<unsigned char*>(keys(1)) + stage * kRows * (d + int{sizeof(float)});
  }
  // s = a b^T of this warp's 16 rows of a; the keys' lower parts are kRows rows behind them.
  __device__ void multiply(float (&s)[kRows / 8][4], const bf16* a, const bf16* b,
                           const bf16* keys) const {
#pragma unroll
    for (int t = 0; t < kRows / 8; ++t) s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
    a += static_cast<int>(threadIdx.x) / 32 * 16 * stride;
    if constexpr (kParts == 2) {
      const int low = kRows * stride;
      multiply_tile<kRows>(s, a + (b == keys ? 0 : low), b + (b == keys ? low : 0), depth, stride);
    }
    multiply_tile<kRows>(s, a, b, depth, stride);
  }
  static size_t bytes(int d) {
    const size_t staged = sizeof(T) == 1 ? 2 * kRows * (static_cast<size_t>(d) + sizeof(float)) : 0;
    return sizeof(bf16) * static_cast<size_t>(row_stride(d)) * kRows * (1 + kParts * kStages) +
           staged;
  }
};

// Fills a tile: at(r) is where row r is, null for zeros. Eight numbers at a time, asynchronously
// where they are bf16 and aligned.
template <class T, class RowAt>
__device__ void load_rows(bf16* to, int d, RowAt at) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;  // a warp fills 16 rows
  const int stride = row_stride(d), chunks = padded_depth(d) / 8;
  const int shift = 32 - __clz(chunks - 1);  // a power of two of lanes takes a row
  const auto row_at = reinterpret_cast<uint64_t>(at(first + lane % 16));
  for (int i = lane; i < 16 << shift; i += 32) {
    const int row = i >> shift, chunk = i & ((1 << shift) - 1), c = 8 * chunk;
    const auto* from = reinterpret_cast<const T*>(__shfl_sync(kFullWarp, row_at, row));
    if (chunk >= chunks) continue;
    bf16* high = to + (first + row) * stride + c;
    if (sizeof(T) == 2 && d % 8 == 0 && from != nullptr && c < d) {
      copy_async_16(high, from + c, true);
      continue;
    }
    for (int e = 0; e < 8; ++e) {
      bf16 low;
      split(from != nullptr && c + e < d ? to_float(from[c + e]) : 0.0f, high[e], low);
      if constexpr (sizeof(T) == 4) high[kRows * stride + e] = low;
    }
  }
}

template <class Tiles>
__device__ void load_pairs(const Params& p, const Tiles& tiles, int64_t kv_head, int first) {
  load_rows<bf16>(tiles.pairs, tiles.d, [&](int r) -> const bf16* {
    const int pair = first + r, query = pair % p.padded_queries;
    if (pair >= p.n_pairs || query >= p.n_queries) return nullptr;
    const int at = p.first + query, row = at < p.ring_rows ? at : at - p.ring_rows;
    return p.window + row * p.cols + (kv_head * p.group + pair / p.padded_queries) * tiles.d;
  });
}

// use(tile, keys) for every gridDim.x-th tile of the keys before `end`; the queries' copies may be
// under way before.
template <class T, int kDim, class Use>
__device__ void for_tiles(const Params& p, const Tiles<T, kDim>& tiles, int64_t kv_head, int end,
                          Use use) {
  constexpr int kStages = Tiles<T, kDim>::kStages;
  const int n = p.n_rows[kv_head], step = static_cast<int>(gridDim.x);
  const auto load = [&](int tile, int stage) {
    if (tile * kRows >= end) return;
    load_rows<T>(tiles.keys(stage), tiles.d, [&](int r) -> const T* {
      const int row = tile * kRows + r;
      return row < n ? p.rows.key<T>(kv_head, row) : nullptr;
    });
    copy_async_commit();
  };
  int tile = static_cast<int>(blockIdx.x);
  if (kStages == 2) load(tile, 0);
  for (int stage = 0; tile * kRows < end; tile += step, stage ^= kStages - 1) {
    if (kStages == 1) {
      __syncthreads();  // all are through with the last tile
      load(tile, 0);
    }
    copy_async_wait<0>();
    __syncthreads();
    if (kStages == 2) load(tile + step, stage ^ 1);
    use(tile, tiles.keys(stage));
  }
}

// Of keys in e4m3, which come as bytes and become operands when they are wanted.
template <int kDim, class Use>
__device__ void for_tiles(const Params& p, const Tiles<e4m3, kDim>& tiles, int64_t kv_head, int end,
                          Use use) {
  const int n = p.n_rows[kv_head], step = static_cast<int>(gridDim.x), d = tiles.d;
  const int thread = static_cast<int>(threadIdx.x);
  const auto load = [&](int tile, int stage) {
    if (tile * kRows >= end) return;
    unsigned char* to = tiles.staged(stage);
    const int chunks = d / 16, lane = thread % 32;
    const int first = thread / 32 * 16;  // a warp copies 16 rows
    const int mine = tile * kRows + first + lane % 16;
    const bool valid = mine < n;
    const auto row_at = valid ? reinterpret_cast<uint64_t>(p.rows.key<char>(kv_head, mine)) : 0;
#pragma unroll 1
    for (int begin = 0; begin < 16 * chunks; begin += 32) {
      const int i = begin + lane, row = i / chunks % 16, c = i % chunks;
      const auto* from = reinterpret_cast<const char*>(__shfl_sync(kFullWarp, row_at, row));
      if (i >= 16 * chunks) continue;
      copy_async_16(to + (first + row) * d + c * 16, from + c * 16, from != nullptr);
    }
    if (lane < 16)
      copy_async_4(to + kRows * d + (first + lane) * 4, p.rows.scale(kv_head, valid ? mine : 0),
                   valid);
    copy_async_commit();
  };
  int tile = static_cast<int>(blockIdx.x);
  load(tile, 0);
  for (int stage = 0; tile * kRows < end; tile += step, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();
    load(tile + step, stage ^ 1);
    const unsigned char* from = tiles.staged(stage);
    const auto* scales = reinterpret_cast<const float*>(from + kRows * d);
    const int chunks = d / 16;
#pragma unroll 1
    for (int i = thread; i < kRows * chunks; i += kThreads) {
      const int row = i / chunks, c = i % chunks;
      const uint4 bytes = reinterpret_cast<const uint4*>(from)[i];
      const float scale = scales[row];
      auto* to = reinterpret_cast<uint4*>(tiles.keys(0) + row * tiles.stride + c * 16);
      uint2 a = widen_keys(bytes.x, scale), b = widen_keys(bytes.y, scale);
      to[0] = {a.x, a.y, b.x, b.y};
      a = widen_keys(bytes.z, scale), b = widen_keys(bytes.w, scale);
      to[1] = {a.x, a.y, b.x, b.y};
    }
    __syncthreads();
    use(tile, tiles.keys(0));
  }
}

// blockIdx: split of the keys, KV head, tile of pairs. Pairs are the rows of the products.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 2) denominators(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char raw[];
  const Tiles<T, kDim> tiles(raw, p);
  const int64_t kv_head = blockIdx.y;
  const int n = p.n_rows[kv_head], lane = static_cast<int>(threadIdx.x % 32);
  const int first_pair = static_cast<int>(blockIdx.z) * kRows;
  load_pairs(p, tiles, kv_head, first_pair);

  const int pair = first_pair + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  float top[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
  for_tiles(p, tiles, kv_head, n, [&](int tile, const bf16* keys) {
    float s[kRows / 8][4];
    tiles.multiply(s, tiles.pairs, keys, keys);
    if ((tile + 1) * kRows > n - p.n_queries + 1) {
      // Query i of the window sees rows up to n - n_queries + i.
      const int last[2] = {n - p.n_queries + pair % p.padded_queries,
                           n - p.n_queries + (pair + 8) % p.padded_queries};
#pragma unroll
      for (int t = 0; t < kRows / 8; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (tile * kRows + 8 * t + lane % 4 * 2 + e % 2 > last[e / 2]) s[t][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int t = 0; t < kRows / 8; ++t) most = fmaxf(most, fmaxf(s[t][2 * r], s[t][2 * r + 1]));
      const float offset = most * p.scale_log2;
      float part = 0;
#pragma unroll
      for (int t = 0; t < kRows / 8; ++t)
        part += exp2_approx(s[t][2 * r] * p.scale_log2 - offset) +
                exp2_approx(s[t][2 * r + 1] * p.scale_log2 - offset);
      sum[r] = sum[r] * exp2_approx((top[r] - most) * p.scale_log2) + part;
      top[r] = most;
    }
  });
  float2* partial = p.partial + kv_head * gridDim.x * p.n_pairs;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {  // the four threads of a row
      const float other_top = __shfl_xor_sync(kFullWarp, top[r], step);
      const float other_sum = __shfl_xor_sync(kFullWarp, sum[r], step);
      const float most = fmaxf(top[r], other_top);
      sum[r] = sum[r] * exp2_approx((top[r] - most) * p.scale_log2) +
               other_sum * exp2_approx((other_top - most) * p.scale_log2);
      top[r] = most;
    }
    if (lane % 4 == 0 && pair + 8 * r < p.n_pairs)
      partial[int64_t{blockIdx.x} * p.n_pairs + pair + 8 * r] = make_float2(top[r], sum[r]);
  }

  // The last split to finish merges them all.
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    is_last = atomicInc(&p.done[kv_head * gridDim.z + blockIdx.z], gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  const int mine = first_pair + static_cast<int>(threadIdx.x);
  if (!is_last || threadIdx.x >= kRows || mine >= p.n_pairs) return;
  __threadfence();
  float most = -1e30f, total = 0;
#pragma unroll 8
  for (unsigned i = 0; i < gridDim.x; ++i)
    most = fmaxf(most, __ldcg(&partial[int64_t{i} * p.n_pairs + mine]).x);
#pragma unroll 8
  for (unsigned i = 0; i < gridDim.x; ++i) {
    const float2 part = __ldcg(&partial[int64_t{i} * p.n_pairs + mine]);
    total += part.y * exp2_approx((part.x - most) * p.scale_log2);
  }
  p.log_sum[kv_head * p.n_pairs + mine] =
      mine % p.padded_queries < p.n_queries
          ? most * p.scale_log2 + log2f(total * static_cast<float>(p.vote_queries))
          : INFINITY;
}

// blockIdx: split of the keys, KV head. Keys are the rows of the products, so that a thread has the
// probabilities of two keys, always added up in the same order.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 2) add_up(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char raw[];
  __shared__ float2 log_sums[kRows / 2];  // of the tile's pairs
  const Tiles<T, kDim> tiles(raw, p);
  const int64_t kv_head = blockIdx.y;
  const int n_votes = p.n_rows[kv_head] - p.n_queries;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const auto load = [&](int first) {
    load_pairs(p, tiles, kv_head, first);
    if (thread < kRows)
      reinterpret_cast<float*>(log_sums)[thread] =
          first + thread < p.n_pairs ? p.log_sum[kv_head * p.n_pairs + first + thread] : INFINITY;
  };
  load(0);

  for_tiles(p, tiles, kv_head, n_votes, [&](int tile, const bf16* keys) {
    const int key = tile * kRows + thread / 32 * 16 + lane / 4;  // and the eighth behind it
    float sum[2] = {0, 0}, vote[2] = {0, 0};
    int left = p.vote_pairs;
    int64_t row = p.per_query_head ? kv_head * p.group : kv_head;  // of votes
    for (int first = 0; first < p.n_pairs; first += kRows) {
      if (p.n_pairs > kRows) {
        __syncthreads();
        load(first);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
      }
      float s[kRows / 8][4];
      tiles.multiply(s, keys, tiles.pairs, keys);
      float probability[kRows / 8][2];  // of two neighbouring pairs together
#pragma unroll
      for (int t = 0; t < kRows / 8; ++t) {
        const float2 log_sum = log_sums[4 * t + lane % 4];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          probability[t][r] = exp2_approx(s[t][2 * r] * p.scale_log2 - log_sum.x) +
                              exp2_approx(s[t][2 * r + 1] * p.scale_log2 - log_sum.y);
      }
#pragma unroll
      for (int t = 0; t < kRows / 8; ++t) {
        sum[0] += probability[t][0];
        sum[1] += probability[t][1];
        left -= 8;
        if (left > 0) continue;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          sum[r] += __shfl_xor_sync(kFullWarp, sum[r], 1);
          sum[r] += __shfl_xor_sync(kFullWarp, sum[r], 2);
          vote[r] = p.per_query_head ? sum[r] : fmaxf(vote[r], sum[r]);
          sum[r] = 0;
        }
        left = p.vote_pairs;
        const bool is_last = first + 8 * (t + 1) == p.n_pairs;
        if (p.per_query_head || is_last) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            if (lane % 4 == 0 && key + 8 * r < n_votes)
              p.votes[row * p.votes_cols + key + 8 * r] = vote[r];
          }
          ++row;
        }
        if (is_last) break;
      }
    }
  });
}

struct Votes {
  const float* votes;
  int n;

  __device__ float average(int j, int64_t width) const {
    float sum = 0;
    for (int i = begin(j, width); i < end(j, width); ++i) sum += votes[i];
    return sum / static_cast<float>(width);
  }
  __device__ float highest(int j, int64_t width) const {
    float most = votes[j];
    for (int i = begin(j, width); i < end(j, width); ++i) most = fmaxf(most, votes[i]);
    return most;
  }
  __device__ float highest_average(int j, int64_t width, int64_t of_width) const {
    float most = average(j, of_width);
    for (int i = begin(j, width); i < end(j, width); ++i) most = fmaxf(most, average(i, of_width));
    return most;
  }
  __device__ int reach(int64_t width) const {
    return static_cast<int>(min(width / 2, static_cast<int64_t>(n)));
  }
  __device__ int begin(int j, int64_t width) const { return max(0, j - reach(width)); }
  __device__ int end(int j, int64_t width) const { return min(n, j + reach(width) + 1); }
};

__global__ void pool(const __grid_constant__ PoolVotes op) {
  const int64_t h = blockIdx.y, m = op.votes.dims[1];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const Votes votes = {op.votes.data + h * m, op.n_votes.data[h]};
  if (i >= votes.n) return;
  float y = votes.votes[i];
  if (op.pooling == Pooling::kAvg) y = votes.average(i, op.kernel);
  if (op.pooling == Pooling::kMax) y = votes.highest(i, op.kernel);
  if (op.pooling == Pooling::kBoth)
    y = both_pools(votes.average(i, kNarrowPool), votes.highest_average(i, op.kernel, kNarrowPool));
  op.out.data[h * m + i] = y;
}

}  // namespace

void CudaBackend::run(const Vote& op) {
  check(op);
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim,
                n_heads = op.window.cols / d;
  if (d > kMaxDim) throw Error("Vote: CUDA takes heads of at most 256 numbers");
  if (op.over_queries != GroupReduce::kMean || op.query_weights.data != nullptr ||
      op.row_weights.data != nullptr)
    throw Error(
        "CUDA: there are no votes by the highest of many queries, and none with weights; keep the "
        "cache by another policy than kvzip, or run on the CPU (--device cpu)");
  Params p{};
  p.window = static_cast<const bf16*>(op.window.data);
  p.cols = op.window.cols;
  p.ring_rows = static_cast<int>(op.window.rows);
  p.first = static_cast<int>(op.first);
  p.n_queries = static_cast<int>(op.n_queries);
  p.padded_queries = (p.n_queries + 7) / 8 * 8;
  p.group = static_cast<int>(n_heads / kv_heads);
  p.n_pairs = p.group * p.padded_queries;
  p.d = static_cast<int>(d);
  p.rows = cache_rows(op.kv);
  p.n_rows = op.kv.n_rows.data;
  p.scale_log2 = op.scale * static_cast<float>(M_LOG2E);
  p.per_query_head = op.votes.dim(0) != kv_heads;
  const bool of_group = !p.per_query_head && op.reduce == GroupReduce::kMean;
  p.vote_pairs = of_group ? p.n_pairs : p.padded_queries;
  p.vote_queries = of_group ? p.group * p.n_queries : p.n_queries;
  p.votes = op.votes.data;
  p.votes_cols = op.votes.dim(1);

  const int64_t pair_tiles = blocks_for(p.n_pairs, kRows);
  const int64_t key_tiles = blocks_for(op.kv.rows_bound, kRows);
  const auto splits = [&](int64_t lists) {  // two blocks a multiprocessor
    return static_cast<unsigned>(std::clamp<int64_t>(2 * n_sms_ / lists, 1, key_tiles));
  };
  const unsigned n_splits = splits(kv_heads * pair_tiles), heads = static_cast<unsigned>(kv_heads);
  p.partial = static_cast<float2*>(scratch(
      kv_heads * p.n_pairs * (n_splits * int64_t{sizeof(float2)} + int64_t{sizeof(float)})));
  p.log_sum = reinterpret_cast<float*>(p.partial + kv_heads * n_splits * p.n_pairs);
  p.done = counters() + 2;  // the first two are SparseAttention's
  if (kv_heads * pair_tiles > kCounters - 2) throw Error("Vote: too many heads or queries");
  const auto start = [&]<class T, int kDim>() {
    const size_t bytes = Tiles<T, kDim>::bytes(p.d);
    launch("Vote", denominators<T, kDim>, dim3(n_splits, heads, static_cast<unsigned>(pair_tiles)),
           kThreads, bytes, stream_, p);
    launch("Vote", add_up<T, kDim>, dim3(splits(kv_heads), heads), kThreads, bytes, stream_, p);
  };
  if (op.kv.layout.dtype == DType::kF32) {
    start.operator()<float, 0>();
  } else if (op.kv.layout.dtype == DType::kFP8) {
    d == 128 ? start.operator()<e4m3, 128>() : start.operator()<e4m3, 0>();
  } else if (d == 128) {
    start.operator()<bf16, 128>();
  } else {
    start.operator()<bf16, 0>();
  }
}

void CudaBackend::run(const ExpectVotes&) {
  throw Error(
      "CUDA: there are no votes of expected queries; keep the cache by another policy than "
      "expected, or run on the CPU (--device cpu)");
}

void CudaBackend::run(const ValueNorms&) {
  throw Error(
      "CUDA: values are not measured after a matrix; keep the cache by another policy than "
      "kvzip-plus, or run on the CPU (--device cpu)");
}

void CudaBackend::run(const PoolVotes& op) {
  check(op);
  const dim3 grid(blocks_for(op.votes.dim(1), 256), static_cast<unsigned>(op.votes.dim(0)));
  launch("PoolVotes", pool, grid, 256, 0, stream_, op);
}

}  // namespace ei::cuda
