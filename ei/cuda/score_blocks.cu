#include <algorithm>

#include "ei/base/error.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kTile = 64;  // rows (segment, query head) and blocks of a product
constexpr int kWarps = 4;
constexpr int kSlices = 8;  // of a segment's rows, in finding its midpoint
constexpr int kMaxDim = 256;

struct Params {
  const bf16* q;
  float* mid;  // [n_segments, cols]
  int64_t rows, cols, segment, n_segments;
  const float* low;  // [n_kv_heads, max_blocks, d]
  const float* high;
  int64_t max_blocks;
  int d, group;       // group: query heads of a KV head
  int tile_segments;  // segments of a tile of rows
  int first_past;     // blocks before the chunk's first segment
  int segment_blocks;
  float scale;
  float* score;  // [n_kv_heads, score_rows, score_cols]
  int64_t score_rows, score_cols;
  float* entropy;  // [n_kv_heads, entropy_cols], from the chunk's first segment on
  int64_t entropy_cols;
};

// Midpoint of a segment's queries; blockIdx: columns, segment. kWidth columns a thread.
template <int kWidth>
__global__ void midpoints(const __grid_constant__ Params p) {
  __shared__ float low[kSlices][32 * kWidth], high[kSlices][32 * kWidth];
  const int lane = static_cast<int>(threadIdx.x), slice = static_cast<int>(threadIdx.y);
  const int64_t column = (int64_t{blockIdx.x} * 32 + lane) * kWidth;
  const int64_t begin = blockIdx.y * p.segment, end = min(begin + p.segment, p.rows);
  if (column < p.cols) {
    float least[kWidth], most[kWidth];
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      least[e] = INFINITY;
      most[e] = -INFINITY;
    }
#pragma unroll 4
    for (int64_t row = begin + slice; row < end; row += kSlices) {
      const bf16* from = p.q + row * p.cols + column;
      float x[kWidth];
      if constexpr (kWidth == 8) {
        const Bf16x8 v = *reinterpret_cast<const Bf16x8*>(from);
#pragma unroll
        for (int e = 0; e < 8; ++e) x[e] = v[e];
      } else {
        x[0] = to_float(*from);
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        least[e] = fminf(least[e], x[e]);
        most[e] = fmaxf(most[e], x[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      low[slice][lane * kWidth + e] = least[e];
      high[slice][lane * kWidth + e] = most[e];
    }
  }
  __syncthreads();
  for (int i = slice * 32 + lane; i < 32 * kWidth; i += 32 * kSlices) {
    const int64_t c = int64_t{blockIdx.x} * 32 * kWidth + i;
    if (c >= p.cols) break;
    float least = low[0][i], most = high[0][i];
#pragma unroll
    for (int s = 1; s < kSlices; ++s) {
      least = fminf(least, low[s][i]);
      most = fmaxf(most, high[s][i]);
    }
    p.mid[blockIdx.y * p.cols + c] = (most + least) / 2;
  }
}

// Scores of one tile; blockIdx: blocks, KV head, segments. Midpoints and bounds are split into two
// bf16 each, so that tensor cores give 16 bits; bounds of bf16 keys need one, and then a third of
// the products is left out.
__global__ void __launch_bounds__(32 * kWarps) score(const __grid_constant__ Params p) {
  extern __shared__ bf16 tiles[];
  const int stride = row_stride(p.d), depth = padded_depth(p.d), size = kTile * stride;
  bf16 *mid_high = tiles, *mid_low = tiles + size;
  bf16 *max_high = tiles + 2 * size, *max_low = tiles + 3 * size;
  bf16 *min_high = tiles + 4 * size, *min_low = tiles + 5 * size;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_block = static_cast<int>(blockIdx.x) * kTile;
  const int64_t kv_head = blockIdx.y;
  const int first_segment = static_cast<int>(blockIdx.z) * p.tile_segments;
  const int n_segments = min(p.tile_segments, static_cast<int>(p.n_segments) - first_segment);
  const int past = p.first_past + (first_segment + n_segments - 1) * p.segment_blocks;
  if (first_block >= past) return;

  bool inexact = false;
  for (int i = thread; i < kTile * depth; i += 32 * kWarps) {
    const int row = i / depth, c = i % depth, at = row * stride + c;
    float mid = 0, low = 0, high = 0;
    if (c < p.d) {
      if (row < n_segments * p.group) {
        const int64_t head = kv_head * p.group + row % p.group;
        mid = p.mid[(first_segment + row / p.group) * p.cols + head * p.d + c];
      }
      if (first_block + row < past) {
        const int64_t bound = (kv_head * p.max_blocks + first_block + row) * p.d + c;
        low = p.low[bound];
        high = p.high[bound];
      }
    }
    split(mid, mid_high[at], mid_low[at]);
    split(high, max_high[at], max_low[at]);
    split(low, min_high[at], min_low[at]);
    inexact |= to_float(max_low[at]) != 0 || to_float(min_low[at]) != 0;
  }
  inexact = __syncthreads_or(inexact);

  float of_max[kTile / 8][4] = {}, of_min[kTile / 8][4] = {};
  const int first_row = warp * 16 * stride;
  multiply_tile<kTile>(of_max, mid_low + first_row, max_high, depth, stride);
  multiply_tile<kTile>(of_min, mid_low + first_row, min_high, depth, stride);
  if (inexact) {
    multiply_tile<kTile>(of_max, mid_high + first_row, max_low, depth, stride);
    multiply_tile<kTile>(of_min, mid_high + first_row, min_low, depth, stride);
  }
  multiply_tile<kTile>(of_max, mid_high + first_row, max_high, depth, stride);
  multiply_tile<kTile>(of_min, mid_high + first_row, min_high, depth, stride);

  __syncthreads();
  auto* best = reinterpret_cast<float*>(tiles);  // [kTile, kTile + 1]
#pragma unroll
  for (int t = 0; t < kTile / 8; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = warp * 16 + lane / 4 + e / 2 * 8, column = 8 * t + lane % 4 * 2 + e % 2;
      best[row * (kTile + 1) + column] = fmaxf(of_max[t][e], of_min[t][e]);
    }
  }
  __syncthreads();
  for (int i = thread; i < n_segments * kTile; i += 32 * kWarps) {
    const int segment = first_segment + i / kTile, block = first_block + i % kTile;
    if (block >= p.first_past + segment * p.segment_blocks) continue;
    float sum = 0;
    for (int g = 0; g < p.group; ++g)
      sum += best[(i / kTile * p.group + g) * (kTile + 1) + i % kTile];
    p.score[(kv_head * p.score_rows + segment) * p.score_cols + block] =
        p.scale * (sum / static_cast<float>(p.group));
  }
}

// Entropy of a row of scores; blockIdx: segment, KV head. Sums in double: when one block dominates,
// the answer is what is left of log 1.
__global__ void __launch_bounds__(512) entropy(const __grid_constant__ Params p) {
  __shared__ float tops[32];
  __shared__ double parts[32];
  const int64_t segment = blockIdx.x, head = blockIdx.y;
  const int64_t past = p.first_past + segment * p.segment_blocks;
  const float* score = p.score + (head * p.score_rows + segment) * p.score_cols;
  float top = -INFINITY;
  for (int64_t b = threadIdx.x; b < past; b += blockDim.x) top = fmaxf(top, score[b]);
  top = block_reduce(top, Max{}, tops);
  double z = 0, zt = 0;
  for (int64_t b = threadIdx.x; b < past; b += blockDim.x) {
    const float t = score[b] - top, e = expf(t);
    z += e;
    zt += static_cast<double>(e) * t;
  }
  z = block_reduce(z, Sum{}, parts);
  zt = block_reduce(zt, Sum{}, parts);
  if (threadIdx.x == 0)
    p.entropy[head * p.entropy_cols + segment] =
        past == 0 ? 0.0f : fmaxf(0.0f, static_cast<float>(log(z) - zt / z));
}

}  // namespace

void CudaBackend::run(const ScoreBlocks& op) {
  check(op);
  if (op.q.rows == 0) return;
  const int64_t kv_heads = op.score.dim(0), first = op.begin / op.segment;
  Params p{};
  p.q = static_cast<const bf16*>(op.q.data);
  p.rows = op.q.rows;
  p.cols = op.q.cols;
  p.segment = op.segment;
  p.n_segments = (op.q.rows + op.segment - 1) / op.segment;
  p.mid = static_cast<float*>(scratch(p.n_segments * p.cols * int64_t{sizeof(float)}));
  p.low = op.bounds.min.data;
  p.high = op.bounds.max.data;
  p.max_blocks = op.bounds.min.dim(1);
  p.d = static_cast<int>(op.bounds.min.dim(2));
  p.group = static_cast<int>(p.cols / p.d / kv_heads);
  if (p.d > kMaxDim || p.group > kTile)
    throw Error("ScoreBlocks: CUDA takes heads of at most 256 numbers, 64 of them to a KV head");
  p.tile_segments = kTile / p.group;
  p.segment_blocks = static_cast<int>(op.segment / op.bounds.block);
  p.first_past = static_cast<int>(first) * p.segment_blocks;
  p.scale = op.scale;
  p.score = op.score.data;
  p.score_rows = op.score.dim(1);
  p.score_cols = op.score.dim(2);
  p.entropy = op.entropy.data + first;
  p.entropy_cols = op.entropy.dim(1);

  const auto n_segments = static_cast<unsigned>(p.n_segments);
  if (p.cols % 8 == 0) {
    launch("ScoreBlocks", midpoints<8>, dim3(blocks_for(p.cols, 256), n_segments),
           dim3(32, kSlices), 0, stream_, p);
  } else {
    launch("ScoreBlocks", midpoints<1>, dim3(blocks_for(p.cols, 32), n_segments), dim3(32, kSlices),
           0, stream_, p);
  }
  const int64_t past = p.first_past + (p.n_segments - 1) * p.segment_blocks;
  const dim3 grid(blocks_for(past, kTile), static_cast<unsigned>(kv_heads),
                  blocks_for(p.n_segments, p.tile_segments));
  const size_t shared = std::max(6 * sizeof(bf16) * kTile * static_cast<size_t>(row_stride(p.d)),
                                 sizeof(float) * kTile * (kTile + 1));
  launch("ScoreBlocks", score, grid, 32 * kWarps, shared, stream_, p);
  launch("ScoreBlocks", entropy, dim3(n_segments, static_cast<unsigned>(kv_heads)), 512, 0, stream_,
         p);
}

}  // namespace ei::cuda
