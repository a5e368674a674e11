#include <algorithm>
#include <utility>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/operand_rows.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/shares.h"

// EstimateMass by antidiagonals and by mean keys, the peers' estimates: logits of rows of pooled
// queries and columns of pooled keys, by tensor cores and exactly but for the sums in float; then
// their exponentials, in the same place.
namespace ei::cuda {
namespace {

constexpr int kTile = 64;  // rows and columns
constexpr int kThreads = 128;
constexpr int kMaxDim = 256;
constexpr float kLog2e = 1.44269504f;

struct Params {
  // Segments [first_segment, ...) of the text that are being worked on.
  int64_t first_segment, segment, block;
  int heads;       // query heads of a KV head
  int per_head;    // rows of a segment and head
  int64_t n_rows;  // of all segments and a KV head
  const bf16* q;
  int64_t q_cols;
  CacheRows rows;
  int stride;        // queries of a row, keys of a column
  float* means;      // [n_kv_heads, n_blocks, d]; null: columns are of the cache's keys
  int64_t n_blocks;  // up to the end of the last segment
  float scale;       // log2 e in it
  bool causal;
  float* e;  // [n_kv_heads, n_rows, e_stride]
  int64_t e_stride;

  __device__ int64_t segment_of(int64_t row) const { return row / (heads * per_head); }
  // Columns up to the end of the row's segment.
  __device__ int columns(int64_t row) const {
    const int64_t end = (first_segment + segment_of(row) + 1) * segment;
    return static_cast<int>(means != nullptr ? end / block : end / stride);
  }
};

// The mean key of a block; blockIdx: block, KV head.
template <class T>
__global__ void mean_keys(const __grid_constant__ Params p) {
  const int64_t b = blockIdx.x, h = blockIdx.y;
  for (int c = static_cast<int>(threadIdx.x); c < p.rows.d; c += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int64_t j = b * p.block; j < (b + 1) * p.block; ++j)
      sum += to_float(p.rows.key<T>(h, static_cast<int>(j))[c]);
    p.means[(h * p.n_blocks + b) * p.rows.d + c] = sum / static_cast<float>(p.block);
  }
}

// A tile of logits; blockIdx: columns, rows, KV head. Columns are of T: keys of the cache, or
// means.
template <class T>
__global__ void __launch_bounds__(kThreads) logits(const __grid_constant__ Params p) {
  constexpr int kParts = sizeof(T) == 2 ? 1 : 3;
  extern __shared__ __align__(16) unsigned char shared[];
  const int d = p.rows.d, stride = row_stride(d), depth = padded_depth(d);
  auto* queries = reinterpret_cast<bf16*>(shared);
  bf16* keys = queries + kTile * stride;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t first_row = int64_t{blockIdx.y} * kTile, h = blockIdx.z;
  const int first_column = static_cast<int>(blockIdx.x) * kTile;
  const int n_columns = p.columns(min(first_row + kTile, p.n_rows) - 1);
  if (first_column >= n_columns) return;
  float sum[kTile / 8][4] = {};
  for (int t = 0; t < p.stride; ++t) {
    load_operands<1, bf16>(
        [&](int i) -> const bf16* {
          const int64_t row = first_row + i;
          if (row >= p.n_rows) return nullptr;
          const int64_t head = h * p.heads + row / p.per_head % p.heads;
          const int64_t position =
              p.segment_of(row) * p.segment + (row % p.per_head + 1) * p.stride - 1 - t;
          return p.q + position * p.q_cols + head * d;
        },
        kTile, d, queries);
    load_operands<kParts, T>(
        [&](int i) -> const T* {
          const int column = first_column + i;
          if (column >= n_columns) return nullptr;
          if constexpr (sizeof(T) == 4)
            if (p.means != nullptr) return p.means + (h * p.n_blocks + column) * d;
          return p.rows.key<T>(h, column * p.stride + t);
        },
        kTile, d, keys);
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      multiply_tile<kTile>(sum, queries + warp * 16 * stride, keys + part * kTile * stride, depth,
                           stride);
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < kTile / 8; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t row = first_row + warp * 16 + lane / 4 + e / 2 * 8;
      const int column = first_column + 8 * t + lane % 4 * 2 + e % 2;
      if (row < p.n_rows) p.e[(h * p.n_rows + row) * p.e_stride + column] = p.scale * sum[t][e];
    }
}

// Exponentials of a row, relative to its highest, zeros where it does not see; blockIdx: row, KV
// head.
__global__ void __launch_bounds__(kThreads) exponentials(const __grid_constant__ Params p) {
  __shared__ float parts[32];
  const int64_t row = blockIdx.x;
  const int n = p.columns(row);
  const int seen =
      p.causal ? static_cast<int>((p.first_segment + p.segment_of(row)) * p.segment / p.stride +
                                  row % p.per_head) +
                     1
               : n;
  float* x = p.e + (blockIdx.y * p.n_rows + row) * p.e_stride;
  float top = -INFINITY;
  for (int c = static_cast<int>(threadIdx.x); c < seen; c += kThreads) top = fmaxf(top, x[c]);
  top = block_reduce(top, Max{}, parts);
  for (int c = static_cast<int>(threadIdx.x); c < n; c += kThreads)
    x[c] = c < seen ? exp2f(x[c] - top) : 0.0f;
}

}  // namespace

void CudaBackend::estimate_by_logits(const EstimateMass& op, Segments segments) {
  const bool is_means = op.estimate == Estimate::kMeanKeys;
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim;
  if (d > kMaxDim) throw Error("EstimateMass: CUDA takes heads of at most 256 numbers");
  Params p{};
  p.segment = op.segment;
  p.block = op.block;
  p.heads = static_cast<int>(op.q.cols / d / kv_heads);
  p.stride = is_means ? 1 : static_cast<int>(op.stride);
  p.per_head = static_cast<int>(op.segment) / p.stride;
  p.q_cols = op.q.cols;
  p.rows = cache_rows(op.kv);
  p.n_blocks = (op.begin / op.segment + segments.begin + segments.count) * op.segment / op.block;
  p.scale = op.scale * kLog2e / static_cast<float>(p.stride);
  p.causal = !is_means;
  const int64_t per_block = is_means ? 1 : op.block / op.stride;
  const int64_t of_segment = int64_t{p.heads} * p.per_head;
  const unsigned column_tiles = blocks_for(p.n_blocks * per_block, kTile);
  p.e_stride = int64_t{column_tiles} * kTile;

  // As many segments at a time as there is room for.
  const int64_t at_once = std::clamp<int64_t>(
      kMostExponentials / (kv_heads * of_segment * p.e_stride), 1, segments.count);
  const int64_t n_means = is_means ? kv_heads * p.n_blocks * d : 0;
  auto* const numbers = static_cast<float*>(scratch(
      (n_means + 3 + kv_heads * at_once * of_segment * p.e_stride) * int64_t{sizeof(float)}));
  p.e = numbers + (n_means + 3) / 4 * 4;
  const bool in_bf16 = op.kv.layout.dtype == DType::kBF16;
  if (is_means) {
    p.means = numbers;
    launch("EstimateMass", in_bf16 ? mean_keys<bf16> : mean_keys<float>,
           dim3(static_cast<unsigned>(p.n_blocks), static_cast<unsigned>(kv_heads)), kThreads, 0,
           stream_, p);
  }
  const bool one_part = in_bf16 && !is_means;
  const size_t shared = sizeof(bf16) * kTile * (one_part ? 2 : 4) *
                        static_cast<size_t>(row_stride(static_cast<int>(d)));
  for (int64_t s = 0; s < segments.count; s += at_once) {
    const int64_t n = std::min(at_once, segments.count - s);
    p.first_segment = op.begin / op.segment + segments.begin + s;
    p.n_rows = n * of_segment;
    p.q = static_cast<const bf16*>(op.q.data) + (segments.begin + s) * op.segment * op.q.cols;
    launch("EstimateMass", one_part ? logits<bf16> : logits<float>,
           dim3(column_tiles, blocks_for(p.n_rows, kTile), static_cast<unsigned>(kv_heads)),
           kThreads, shared, stream_, p);
    launch("EstimateMass", exponentials,
           dim3(static_cast<unsigned>(p.n_rows), static_cast<unsigned>(kv_heads)), kThreads, 0,
           stream_, p);
    share_out(op, {segments.begin + s, n},
              {.e = p.e,
               .stride = p.e_stride,
               .rows = of_segment,
               .per_block = per_block,
               .together = is_means},
              stream_);
  }
}

}  // namespace ei::cuda
