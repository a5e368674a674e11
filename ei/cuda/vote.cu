#include <algorithm>
#include <cmath>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/launch.cuh"

// Votes in two passes over the keys: the first finds every query's softmax denominator, the second
// multiplies again and adds up probabilities. Scores are never stored: of 128k keys they would take
// gigabytes.
namespace ei::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16 * kWarps;  // (query head, query) pairs of a tile
constexpr int kKeys = 128;          // of a tile; a thread for each when adding up
constexpr int kMaxDim = 256;

struct Params {
  const bf16* window;
  int64_t cols, ring_rows, first;
  int n_queries, group, d;
  CacheRows rows;
  const int32_t* n_rows;
  float scale_log2;
  float2* partial;  // [n_kv_heads, n_splits, group * n_queries] highest scaled score, sum
  int n_splits;
  bool per_query_head, is_mean;
  float* votes;
  int64_t votes_cols;
};

template <class T>
struct Tiles {
  static constexpr int kParts = sizeof(T) == 2 ? 1 : 2;  // f32 keys are split into two bf16

  bf16* queries;
  bf16* keys;

  __device__ Tiles(unsigned char* raw, int stride)
      : queries(reinterpret_cast<bf16*>(raw)), keys(queries + kRows * stride) {}
  __host__ __device__ static size_t bytes(int d) {
    return sizeof(bf16) * static_cast<size_t>(row_stride(d)) * (kRows + kParts * kKeys);
  }
};

// Rows [first, first + kRows) of the (head, query) pairs of a KV head; zeros behind the last.
__device__ inline void load_queries(const Params& p, bf16* to, int64_t kv_head, int first) {
  const int depth = padded_depth(p.d), stride = row_stride(p.d);
  for (int i = static_cast<int>(threadIdx.x); i < kRows * depth; i += 32 * kWarps) {
    const int row = first + i / depth, c = i % depth;
    bf16 x = __float2bfloat16_rn(0.0f);
    if (row < p.group * p.n_queries && c < p.d) {
      const int64_t head = kv_head * p.group + row / p.n_queries;
      const int64_t ring = (p.first + row % p.n_queries) % p.ring_rows;
      x = p.window[ring * p.cols + head * p.d + c];
    }
    to[i / depth * stride + c] = x;
  }
}

template <class T>
__device__ void load_keys(const Params& p, bf16* to, int64_t kv_head, int first, int n) {
  const int depth = padded_depth(p.d), stride = row_stride(p.d);
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * depth; i += 32 * kWarps) {
    const int row = first + i / depth, c = i % depth;
    float x = 0;
    if (row < n && c < p.d) x = to_float(p.rows.key<T>(kv_head, row)[c]);
    bf16 high, low;
    split(x, high, low);
    to[i / depth * stride + c] = high;
    if constexpr (Tiles<T>::kParts == 2) to[(kKeys + i / depth) * stride + c] = low;
  }
}

// Scores of this warp's 16 rows against the key tile.
template <class T>
__device__ void multiply(const Params& p, float (&s)[kKeys / 8][4], const Tiles<T>& tiles) {
  const int depth = padded_depth(p.d), stride = row_stride(p.d);
#pragma unroll
  for (int t = 0; t < kKeys / 8; ++t) s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
  const bf16* rows = tiles.queries + static_cast<int>(threadIdx.x / 32) * 16 * stride;
  if constexpr (Tiles<T>::kParts == 2)
    multiply_tile<kKeys>(s, rows, tiles.keys + kKeys * stride, depth, stride);
  multiply_tile<kKeys>(s, rows, tiles.keys, depth, stride);
}

// blockIdx: split of the keys, KV head, tile of rows.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) denominators(const __grid_constant__ Params p) {
  extern __shared__ unsigned char raw[];
  const Tiles<T> tiles(raw, row_stride(p.d));
  const int64_t kv_head = blockIdx.y;
  const int n = p.n_rows[kv_head], lane = static_cast<int>(threadIdx.x % 32);
  const int n_tiles = (n + kKeys - 1) / kKeys, n_pairs = p.group * p.n_queries;
  const int first_row = static_cast<int>(blockIdx.z) * kRows;
  load_queries(p, tiles.queries, kv_head, first_row);

  const int row = first_row + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  float top[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
  for (int tile = static_cast<int>(blockIdx.x); tile < n_tiles; tile += p.n_splits) {
    __syncthreads();
    load_keys<T>(p, tiles.keys, kv_head, tile * kKeys, n);
    __syncthreads();
    float s[kKeys / 8][4];
    multiply<T>(p, s, tiles);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Query i of the window sees rows up to n - n_queries + i.
      const int last = n - p.n_queries + (row + 8 * r) % p.n_queries;
      float most = top[r];
#pragma unroll
      for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[t][2 * r + e];
          const int key = tile * kKeys + 8 * t + lane % 4 * 2 + e;
          x = key <= last ? x * p.scale_log2 : -INFINITY;
          most = fmaxf(most, x);
        }
      }
      float part = 0;
#pragma unroll
      for (int t = 0; t < kKeys / 8; ++t)
        part += exp2_approx(s[t][2 * r] - most) + exp2_approx(s[t][2 * r + 1] - most);
      sum[r] = sum[r] * exp2_approx(top[r] - most) + part;
      top[r] = most;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {  // the four threads of a row
      const float other_top = __shfl_xor_sync(0xffffffffu, top[r], step);
      const float other_sum = __shfl_xor_sync(0xffffffffu, sum[r], step);
      const float most = fmaxf(top[r], other_top);
      sum[r] = sum[r] * exp2_approx(top[r] - most) + other_sum * exp2_approx(other_top - most);
      top[r] = most;
    }
    if (lane % 4 == 0 && row + 8 * r < n_pairs)
      p.partial[(kv_head * p.n_splits + blockIdx.x) * n_pairs + row + 8 * r] =
          make_float2(top[r], sum[r]);
  }
}

// blockIdx: tile of keys, KV head.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) add_up(const __grid_constant__ Params p) {
  extern __shared__ unsigned char raw[];
  __shared__ float2 softmax[kRows];  // of each row: highest score and 1 / sum
  const Tiles<T> tiles(raw, row_stride(p.d));
  auto* probs = reinterpret_cast<float*>(raw + Tiles<T>::bytes(p.d));  // [kRows, kKeys + 1]
  const int64_t kv_head = blockIdx.y;
  const int n = p.n_rows[kv_head], n_pairs = p.group * p.n_queries;
  const int first_key = static_cast<int>(blockIdx.x) * kKeys, n_votes = n - p.n_queries;
  if (first_key >= n_votes) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, key = first_key + thread;
  load_keys<T>(p, tiles.keys, kv_head, first_key, n);

  float vote = 0, reduced = 0;  // of this thread's key: of one query head, of all so far
  for (int first = 0; first < n_pairs; first += kRows) {
    __syncthreads();
    load_queries(p, tiles.queries, kv_head, first);
    if (thread < kRows && first + thread < n_pairs) {
      const float2* part = p.partial + kv_head * p.n_splits * n_pairs + first + thread;
      float top = -1e30f, sum = 0;
      for (int i = 0; i < p.n_splits; ++i) top = fmaxf(top, part[int64_t{i} * n_pairs].x);
      for (int i = 0; i < p.n_splits; ++i) {
        const float2 x = part[int64_t{i} * n_pairs];
        sum += x.y * exp2_approx(x.x - top);
      }
      softmax[thread] = make_float2(top, 1.0f / sum);
    }
    __syncthreads();
    float s[kKeys / 8][4];
    multiply<T>(p, s, tiles);
    const int row = thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 of_row = softmax[row + e / 2 * 8];
        probs[(row + e / 2 * 8) * (kKeys + 1) + 8 * t + lane % 4 * 2 + e % 2] =
            exp2_approx(s[t][e] * p.scale_log2 - of_row.x) * of_row.y;
      }
    }
    __syncthreads();
    // Always in the same order, so that votes are the same in every run.
    for (int r = 0; r < min(kRows, n_pairs - first); ++r) {
      vote += probs[r * (kKeys + 1) + thread];
      if ((first + r + 1) % p.n_queries != 0) continue;
      vote /= static_cast<float>(p.n_queries);
      const int head = (first + r) / p.n_queries;
      if (p.per_query_head && key < n_votes)
        p.votes[(kv_head * p.group + head) * p.votes_cols + key] = vote;
      reduced = p.is_mean ? reduced + vote : fmaxf(reduced, vote);
      vote = 0;
    }
  }
  if (!p.per_query_head && key < n_votes)
    p.votes[kv_head * p.votes_cols + key] =
        p.is_mean ? reduced / static_cast<float>(p.group) : reduced;
}

template <class T>
void launch_votes(const Params& p, int64_t kv_heads, int64_t rows_bound, Stream& stream) {
  const auto heads = static_cast<unsigned>(kv_heads);
  launch("Vote", denominators<T>,
         dim3(static_cast<unsigned>(p.n_splits), heads, blocks_for(p.group * p.n_queries, kRows)),
         32 * kWarps, Tiles<T>::bytes(p.d), stream, p);
  launch("Vote", add_up<T>, dim3(blocks_for(rows_bound - p.n_queries, kKeys), heads), 32 * kWarps,
         Tiles<T>::bytes(p.d) + sizeof(float) * kRows * (kKeys + 1), stream, p);
}

__global__ void pool(const __grid_constant__ PoolVotes op) {
  const int64_t h = blockIdx.y, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t n = op.n_votes.data[h], m = op.votes.dims[1], reach = op.kernel / 2;
  if (i >= n) return;
  const float* votes = op.votes.data + h * m;
  float y = votes[i];
  if (op.pooling != Pooling::kNone) {
    const int64_t begin = max(int64_t{0}, i - reach), end = min(n, i + reach + 1);
    y = op.pooling == Pooling::kMax ? -INFINITY : 0.0f;
    for (int64_t j = begin; j < end; ++j)
      y = op.pooling == Pooling::kMax ? fmaxf(y, votes[j]) : y + votes[j];
    if (op.pooling == Pooling::kAvg) y /= static_cast<float>(op.kernel);
  }
  op.out.data[h * m + i] = y;
}

}  // namespace

void CudaBackend::run(const Vote& op) {
  check(op);
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim,
                n_heads = op.window.cols / d;
  if (d > kMaxDim) throw Error("Vote: CUDA takes heads of at most 256 numbers");
  Params p{};
  p.window = static_cast<const bf16*>(op.window.data);
  p.cols = op.window.cols;
  p.ring_rows = op.window.rows;
  p.first = op.first;
  p.n_queries = static_cast<int>(op.n_queries);
  p.group = static_cast<int>(n_heads / kv_heads);
  p.d = static_cast<int>(d);
  p.rows = cache_rows(op.kv);
  p.n_rows = op.kv.n_rows.data;
  p.scale_log2 = op.scale * static_cast<float>(M_LOG2E);
  const int64_t n_pairs = int64_t{p.group} * p.n_queries;
  const int64_t lists = kv_heads * ((n_pairs + kRows - 1) / kRows);
  const int64_t n_tiles = (op.kv.rows_bound + kKeys - 1) / kKeys;
  p.n_splits = static_cast<int>(std::clamp<int64_t>(2 * n_sms_ / lists, 1, n_tiles));
  p.partial =
      static_cast<float2*>(scratch(kv_heads * p.n_splits * n_pairs * int64_t{sizeof(float2)}));
  p.per_query_head = op.votes.dim(0) != kv_heads;
  p.is_mean = op.reduce == GroupReduce::kMean;
  p.votes = op.votes.data;
  p.votes_cols = op.votes.dim(1);
  if (op.kv.layout.dtype == DType::kBF16) {
    launch_votes<bf16>(p, kv_heads, op.kv.rows_bound, stream_);
  } else {
    launch_votes<float>(p, kv_heads, op.kv.rows_bound, stream_);
  }
}

void CudaBackend::run(const PoolVotes& op) {
  check(op);
  const dim3 grid(blocks_for(op.votes.dim(1), 256), static_cast<unsigned>(op.votes.dim(0)));
  launch("PoolVotes", pool, grid, 256, 0, stream_, op);
}

}  // namespace ei::cuda
