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

constexpr int kTile = 128;  // rows and columns; a warp has 32 by 64 of them
constexpr int kThreads = 256;
constexpr int kMaxDim = 192;  // of which four tiles fit shared memory
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
  float* x;  // logits [n_kv_heads, n_rows, n_columns]
  int64_t n_columns;
  int per_block;  // columns
  float* e;       // of blocks [n_kv_heads, n_rows, n_blocks]
  float* sums;    // [n_kv_heads, n_rows]

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
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 1)
    logits(const __grid_constant__ Params p) {
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
  const int warp_row = warp % 4 * 32, warp_column = warp / 4 * 64;
  __shared__ const void* rows[kTile];
  float sum[2][8][4] = {};
  for (int t = 0; t < p.stride; ++t) {
    load_operands<1>(
        [&](int i) -> const bf16* {
          const int64_t row = first_row + i;
          if (row >= p.n_rows) return nullptr;
          const int64_t head = h * p.heads + row / p.per_head % p.heads;
          const int64_t position =
              p.segment_of(row) * p.segment + (row % p.per_head + 1) * p.stride - 1 - t;
          return p.q + position * p.q_cols + head * d;
        },
        kTile, d, queries, reinterpret_cast<const bf16**>(rows));
    __syncthreads();
    load_operands<kParts>(
        [&](int i) -> const T* {
          const int column = first_column + i;
          if (column >= n_columns) return nullptr;
          if constexpr (sizeof(T) == 4)
            if (p.means != nullptr) return p.means + (h * p.n_blocks + column) * d;
          return p.rows.key<T>(h, column * p.stride + t);
        },
        kTile, d, keys, reinterpret_cast<const T**>(rows));
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const bf16* a_row = queries + (warp_row + lane % 16) * stride + lane / 16 * 8;
      const bf16* b_row = keys + (part * kTile + warp_column + lane / 16 * 8 + lane % 8) * stride +
                          lane / 8 % 2 * 8;
      for (int k = 0; k < depth; k += 16) {
        uint32_t a[2][4];
        for (int m = 0; m < 2; ++m) ldmatrix_x4(a[m], a_row + m * 16 * stride + k);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          uint32_t b[4];
          ldmatrix_x4(b, b_row + n * 8 * stride + k);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            mma_16816(sum[m][n], a[m], b[0], b[1]);
            mma_16816(sum[m][n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t row = first_row + warp_row + m * 16 + lane / 4 + e / 2 * 8;
        const int column = first_column + warp_column + 8 * n + lane % 4 * 2 + e % 2;
        if (row < p.n_rows)
          p.x[(h * p.n_rows + row) * p.n_columns + column] = p.scale * sum[m][n][e];
      }
}

// Exponentials of a row, relative to its highest, of the columns that it sees, added up by blocks;
// blockIdx: row, KV head.
__global__ void __launch_bounds__(kThreads) exponentials(const __grid_constant__ Params p) {
  __shared__ float parts[32];
  const int64_t row = blockIdx.x, at = blockIdx.y * p.n_rows + row;
  const int n = p.columns(row), thread = static_cast<int>(threadIdx.x);
  const int seen =
      p.causal ? static_cast<int>((p.first_segment + p.segment_of(row)) * p.segment / p.stride +
                                  row % p.per_head) +
                     1
               : n;
  const float* x = p.x + at * p.n_columns;
  float top = -INFINITY;
#pragma unroll 4
  for (int c = thread; c < seen; c += kThreads) top = fmaxf(top, x[c]);
  top = block_reduce(top, Max{}, parts);
  float sum = 0;
  for (int b = thread; b * p.per_block < n; b += kThreads) {
    float of_block = 0;
#pragma unroll 8
    for (int c = b * p.per_block; c < (b + 1) * p.per_block; ++c)
      of_block += c < seen ? exp2f(x[c] - top) : 0.0f;
    p.e[at * p.n_blocks + b] = of_block;
    sum += of_block;
  }
  sum = block_reduce(sum, Sum{}, parts);
  if (thread == 0) p.sums[at] = sum;
}

}  // namespace

void CudaBackend::estimate_by_logits(const EstimateMass& op, Segments segments) {
  const bool is_means = op.estimate == Estimate::kMeanKeys;
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim;
  if (d > kMaxDim) throw Error("EstimateMass: CUDA takes heads of at most 192 numbers");
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
  p.per_block = is_means ? 1 : static_cast<int>(op.block / op.stride);
  const int64_t of_segment = int64_t{p.heads} * p.per_head;
  const unsigned column_tiles = blocks_for(p.n_blocks * p.per_block, kTile);
  p.n_columns = int64_t{column_tiles} * kTile;

  // As many segments at a time as there is room for.
  const int64_t at_once = std::clamp<int64_t>(
      kMostExponentials / (kv_heads * of_segment * p.n_columns), 1, segments.count);
  const int64_t n_rows = kv_heads * at_once * of_segment;
  const int64_t n_means = is_means ? kv_heads * p.n_blocks * d : 0;
  p.x = static_cast<float*>(
      scratch((n_rows * (p.n_columns + p.n_blocks + 1) + n_means) * int64_t{sizeof(float)}));
  float* const means = p.x + n_rows * p.n_columns;  // aligned: columns are whole tiles
  p.e = means + n_means;
  p.sums = p.e + n_rows * p.n_blocks;
  const bool in_bf16 = op.kv.layout.dtype == DType::kBF16;
  if (is_means) {
    p.means = means;
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
               .stride = p.n_blocks,
               .sums = p.sums,
               .parts = 1,
               .part_blocks = p.n_blocks,
               .rows = of_segment,
               .together = is_means},
              stream_);
  }
}

}  // namespace ei::cuda
