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

// Of one tile's scores of a segment: the highest, and with t = score - top the sums of e^t and
// e^t t. Sums in double: when one block dominates, the entropy is what is left of log 1.
struct SoftmaxPart {
  float top;
  double sum, sum_t;
};

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
  SoftmaxPart* parts;  // [n_kv_heads, n_segments, tiles of blocks]
  uint32_t* done;      // [n_kv_heads, tiles of segments] tiles of blocks finished
  float* entropy;      // [n_kv_heads, entropy_cols], from the chunk's first segment on
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

__device__ inline void load(const float* from, bool in_fours, float (&to)[4]) {
  if (in_fours) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else {
    to[0] = *from;
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
  if (first_block >= past && first_block > 0) return;  // a first block there always is

  // Four numbers at a time where rows of the bounds are whole vectors.
  const bool in_fours = p.d % 4 == 0 && p.cols % 4 == 0;
  const int step = in_fours ? 4 : 1;
  bool inexact = false;
  for (int i = thread * step; i < kTile * depth; i += 32 * kWarps * step) {
    const int row = i / depth, c = i % depth, at = row * stride + c;
    float mid[4] = {}, low[4] = {}, high[4] = {};
    if (c < p.d) {
      if (row < n_segments * p.group) {
        const int64_t head = kv_head * p.group + row % p.group;
        load(p.mid + (first_segment + row / p.group) * p.cols + head * p.d + c, in_fours, mid);
      }
      if (first_block + row < past) {
        const int64_t bound = (kv_head * p.max_blocks + first_block + row) * p.d + c;
        load(p.low + bound, in_fours, low);
        load(p.high + bound, in_fours, high);
      }
    }
    for (int e = 0; e < step; ++e) {
      split(mid[e], mid_high[at + e], mid_low[at + e]);
      split(high[e], max_high[at + e], max_low[at + e]);
      split(low[e], min_high[at + e], min_low[at + e]);
      inexact |= to_float(max_low[at + e]) != 0 || to_float(min_low[at + e]) != 0;
    }
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
  // Scores of a segment by a warp, two a lane, and what they add to the segment's softmax.
  SoftmaxPart* parts = p.parts + (kv_head * p.n_segments + first_segment) * gridDim.x;
  for (int i = warp; i < n_segments; i += kWarps) {
    const int n = p.first_past + (first_segment + i) * p.segment_blocks - first_block;
    float value[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = lane + 32 * e;
      float sum = 0;
      for (int g = 0; g < p.group; ++g) sum += best[(i * p.group + g) * (kTile + 1) + column];
      value[e] = column < n ? p.scale * (sum / static_cast<float>(p.group)) : -INFINITY;
      if (column < n)
        p.score[(kv_head * p.score_rows + first_segment + i) * p.score_cols + first_block +
                column] = value[e];
    }
    SoftmaxPart part{warp_reduce(fmaxf(value[0], value[1]), Max{}), 0, 0};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (lane + 32 * e >= n) continue;
      const float t = value[e] - part.top, weight = expf(t);
      part.sum += weight;
      part.sum_t += static_cast<double>(weight) * t;
    }
    part.sum = warp_reduce(part.sum, Sum{});
    part.sum_t = warp_reduce(part.sum_t, Sum{});
    if (lane == 0) parts[i * gridDim.x + blockIdx.x] = part;
  }

  // The last block of these segments to arrive turns the parts into entropies.
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    const auto last = static_cast<uint32_t>(max(0, past - 1) / kTile);
    is_last = atomicInc(&p.done[blockIdx.y * gridDim.z + blockIdx.z], last) == last;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int i = warp; i < n_segments; i += kWarps) {
    const int n = p.first_past + (first_segment + i) * p.segment_blocks;
    const SoftmaxPart* of_tiles = parts + i * gridDim.x;
    float top = -INFINITY;
    for (int t = lane; t * kTile < n; t += 32) top = fmaxf(top, __ldcg(&of_tiles[t].top));
    top = warp_reduce(top, Max{});
    double z = 0, zt = 0;
    for (int t = lane; t * kTile < n; t += 32) {
      const double below = static_cast<double>(__ldcg(&of_tiles[t].top)) - top;
      const double weight = exp(below), sum = __ldcg(&of_tiles[t].sum);
      z += weight * sum;
      zt += weight * (__ldcg(&of_tiles[t].sum_t) + sum * below);
    }
    z = warp_reduce(z, Sum{});
    zt = warp_reduce(zt, Sum{});
    if (lane == 0)
      p.entropy[kv_head * p.entropy_cols + first_segment + i] =
          n == 0 ? 0.0f : fmaxf(0.0f, static_cast<float>(log(z) - zt / z));
  }
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

  const int64_t past = p.first_past + (p.n_segments - 1) * p.segment_blocks;
  const dim3 grid(std::max(1u, blocks_for(past, kTile)), static_cast<unsigned>(kv_heads),
                  blocks_for(p.n_segments, p.tile_segments));
  if (int64_t{grid.y} * grid.z > kCounters - 2)
    throw Error("ScoreBlocks: too many segments at a time");
  const int64_t n_parts = kv_heads * p.n_segments * grid.x;
  const int64_t n_mids = (p.n_segments * p.cols + 1) / 2 * 2;  // parts behind them are aligned
  p.mid = static_cast<float*>(
      scratch(n_mids * int64_t{sizeof(float)} + n_parts * int64_t{sizeof(SoftmaxPart)}));
  p.parts = reinterpret_cast<SoftmaxPart*>(p.mid + n_mids);
  p.done = counters() + 2;  // the first two are SparseAttention's

  const auto n_segments = static_cast<unsigned>(p.n_segments);
  if (p.cols % 8 == 0) {
    launch("ScoreBlocks", midpoints<8>, dim3(blocks_for(p.cols, 256), n_segments),
           dim3(32, kSlices), 0, stream_, p);
  } else {
    launch("ScoreBlocks", midpoints<1>, dim3(blocks_for(p.cols, 32), n_segments), dim3(32, kSlices),
           0, stream_, p);
  }
  const size_t shared = std::max(6 * sizeof(bf16) * kTile * static_cast<size_t>(row_stride(p.d)),
                                 sizeof(float) * kTile * (kTile + 1));
  launch("ScoreBlocks", score, grid, 32 * kWarps, shared, stream_, p);
}

}  // namespace ei::cuda
