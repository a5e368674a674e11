#include <algorithm>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kTile = 64;   // rows (segment, query head) and blocks of a product
constexpr int kWarps = 8;   // a warp multiplies all rows by 8 blocks
constexpr int kDepth = 64;  // columns of its bounds that a warp has under way
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
  CacheRows keys;
  int d, group;       // group: query heads of a KV head
  int tile_segments;  // segments of a tile of rows
  int first_past;     // blocks before the chunk's first segment
  int segment_blocks;
  float scale;
  float* score;  // [n_kv_heads, score_rows, score_cols]
  int64_t score_rows, score_cols;
  int n_tiles;           // of blocks
  int share;             // of them, a thread block's
  SoftmaxPart* parts;    // [n_kv_heads, n_segments, n_tiles]
  uint32_t* done;        // [n_kv_heads, tiles of segments] thread blocks finished
  float* entropy;        // [n_kv_heads] of the layer, of the chunk's first segment
  int64_t entropy_step;  // to the next segment's
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
      const auto q = Numbers<kWidth>::load(p.q + row * p.cols + column);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        least[e] = fminf(least[e], q.x[e]);
        most[e] = fmaxf(most[e], q.x[e]);
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

// Columns c to c + 3 of a row of d; beyond it zeros. kFours: rows are whole vectors.
template <bool kFours>
__device__ inline float4 load_four(const float* row, int c, int d) {
  if constexpr (kFours) {
    return c < d ? __ldg(reinterpret_cast<const float4*>(row + c)) : float4{};
  } else {
    return {c < d ? row[c] : 0, c + 1 < d ? row[c + 1] : 0, c + 2 < d ? row[c + 2] : 0,
            c + 3 < d ? row[c + 3] : 0};
  }
}

template <bool kFours>
__device__ inline uint2 load_four(const bf16* row, int c, int d) {
  if constexpr (kFours) {
    return c < d ? __ldg(reinterpret_cast<const uint2*>(row + c)) : uint2{};
  } else {
    const auto bits = [&](int i) -> uint32_t { return i < d ? __bfloat16_as_ushort(row[i]) : 0; };
    return {bits(c) | bits(c + 1) << 16, bits(c + 2) | bits(c + 3) << 16};
  }
}

// Four numbers as operands of a product: their upper halves, and what those leave.
struct Four {
  uint32_t high[2], low[2];

  __device__ explicit Four(uint2 x) : high{x.x, x.y}, low{} {}
  __device__ explicit Four(float4 x)
      : high{upper(x.x, x.y), upper(x.z, x.w)},
        low{pack_bf16(rest(x.x), rest(x.y)), pack_bf16(rest(x.z), rest(x.w))} {}
  __device__ bool is_exact() const { return ((low[0] | low[1]) & 0x7fff7fffu) == 0; }

 private:
  __device__ static uint32_t upper(float a, float b) {
    return __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
  }
  __device__ static float rest(float x) {
    return x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
  }
};

// Scores of a run of tiles; blockIdx: blocks, KV head, segments. T is the bounds' type. Midpoints
// are split into two bf16, and so are bounds of a float cache, so that tensor cores give 16 bits;
// bounds that are bf16 or equal to one need no second, and a third of the products is left out.
// Bounds go from memory to registers as operands, each once: lane l of four takes columns 4 l to
// 4 l + 3 of 16, where the product has 2 l, 2 l + 1, 2 l + 8 and 2 l + 9, so midpoints are laid out
// in that order.
template <class T, bool kFours>
__global__ void __launch_bounds__(32 * kWarps, sizeof(T) == 2 && kFours ? 2 : 1)
    score(const __grid_constant__ Params p) {
  extern __shared__ bf16 mid_high[];
  const int depth = (p.d + kDepth - 1) / kDepth * kDepth, stride = row_stride(depth);
  bf16* mid_low = mid_high + kTile * stride;
  auto* best = reinterpret_cast<float*>(mid_low + kTile * stride);  // [kTile, kTile + 1]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_tile = static_cast<int>(blockIdx.x) * p.share;
  const int64_t kv_head = blockIdx.y;
  const int first_segment = static_cast<int>(blockIdx.z) * p.tile_segments;
  const int n_segments = min(p.tile_segments, static_cast<int>(p.n_segments) - first_segment);
  const int past = p.first_past + (first_segment + n_segments - 1) * p.segment_blocks;
  const int n_tiles = max(1, (past + kTile - 1) / kTile);  // a first one there always is
  if (first_tile >= n_tiles) return;
  const int end_tile = min(first_tile + p.share, n_tiles);
  const int end_block = min(end_tile * kTile, past);

  // The bounds of this lane's block of a tile; null behind the last. Looked up a tile before they
  // are fetched: the page's address has to come from memory as well.
  const auto find = [&](int tile) -> const T* {
    const int block = tile * kTile + warp * 8 + lane / 4;
    return block < end_block ? p.keys.lowest<T>(kv_head, block) : nullptr;
  };
  const T *bounds = find(first_tile), *bounds_ahead = find(first_tile + 1);
  // Bounds that come next, kDepth columns of them: those of a tile's columns from k on.
  decltype(load_four<kFours>(bounds, 0, 0)) high[kDepth / 16], low[kDepth / 16];
  const auto load = [&](int j, int k) {
    const int c = k + 16 * j + lane % 4 * 4, width = bounds == nullptr ? 0 : p.d;
    low[j] = load_four<kFours>(bounds, c, width);
    high[j] = load_four<kFours>(bounds + p.keys.highest_offset(), c, width);
  };
#pragma unroll
  for (int j = 0; j < kDepth / 16; ++j) load(j, 0);
  for (int c = 4 * lane; c < depth; c += 128) {
#pragma unroll 4
    for (int row = warp; row < kTile; row += kWarps) {
      const int64_t head = kv_head * p.group + row % p.group;
      const float* mid = p.mid + (first_segment + row / p.group) * p.cols + head * p.d;
      const Four parts(load_four<kFours>(mid, c, row < n_segments * p.group ? p.d : 0));
      const int at = row * stride + c / 16 * 16 + c % 16 / 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<uint32_t*>(mid_high + at + 8 * half) = parts.high[half];
        *reinterpret_cast<uint32_t*>(mid_low + at + 8 * half) = parts.low[half];
      }
    }
  }
  __syncthreads();

  SoftmaxPart* parts = p.parts + (kv_head * p.n_segments + first_segment) * p.n_tiles;
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int first_block = tile * kTile;
    float of_max[kTile / 16][4] = {}, of_min[kTile / 16][4] = {};
    const int operand = (lane % 16) * stride + lane / 16 * 8;
    for (int k = 0; k < depth; k += kDepth) {
      const bool is_last = k + kDepth >= depth;
      if (is_last) {
        bounds = bounds_ahead;
        bounds_ahead = find(tile + 2);
      }
#pragma unroll
      for (int j = 0; j < kDepth / 16; ++j) {
        const Four max(high[j]), min(low[j]);
        load(j, is_last ? 0 : k + kDepth);
        const bf16* a_high = mid_high + operand + k + 16 * j;
        const bf16* a_low = mid_low + operand + k + 16 * j;
        uint32_t a[4];
        if (sizeof(T) > 2 && __any_sync(kFullWarp, !max.is_exact() || !min.is_exact())) {
#pragma unroll
          for (int m = 0; m < kTile / 16; ++m) {
            ldmatrix_x4(a, a_high + m * 16 * stride);
            mma_16816(of_max[m], a, max.low[0], max.low[1]);
            mma_16816(of_min[m], a, min.low[0], min.low[1]);
          }
        }
#pragma unroll
        for (int m = 0; m < kTile / 16; ++m) {
          ldmatrix_x4(a, a_low + m * 16 * stride);
          mma_16816(of_max[m], a, max.high[0], max.high[1]);
          mma_16816(of_min[m], a, min.high[0], min.high[1]);
          ldmatrix_x4(a, a_high + m * 16 * stride);
          mma_16816(of_max[m], a, max.high[0], max.high[1]);
          mma_16816(of_min[m], a, min.high[0], min.high[1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTile / 16; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = m * 16 + lane / 4 + e / 2 * 8, column = warp * 8 + lane % 4 * 2 + e % 2;
        best[row * (kTile + 1) + column] = fmaxf(of_max[m][e], of_min[m][e]);
      }
    }
    __syncthreads();
    // Scores of a segment by a warp, two a lane, and what they add to the segment's softmax.
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
      if (lane == 0) parts[i * p.n_tiles + tile] = part;
    }
    __syncthreads();  // `best` is free
  }

  // The last block of these segments to arrive turns the parts into entropies.
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    const auto last = static_cast<uint32_t>((n_tiles - 1) / p.share);
    is_last = atomicInc(&p.done[blockIdx.y * gridDim.z + blockIdx.z], last) == last;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int i = warp; i < n_segments; i += kWarps) {
    const int n = p.first_past + (first_segment + i) * p.segment_blocks;
    const SoftmaxPart* of_tiles = parts + i * p.n_tiles;
    float top = -INFINITY;
#pragma unroll 4
    for (int t = lane; t * kTile < n; t += 32) top = fmaxf(top, __ldcg(&of_tiles[t].top));
    top = warp_reduce(top, Max{});
    double z = 0, zt = 0;
#pragma unroll 4
    for (int t = lane; t * kTile < n; t += 32) {
      const float below = __ldcg(&of_tiles[t].top) - top;
      const double weight = expf(below), sum = __ldcg(&of_tiles[t].sum);  // 1 where it must be
      z += weight * sum;
      zt += weight * (__ldcg(&of_tiles[t].sum_t) + sum * below);
    }
    z = warp_reduce(z, Sum{});
    zt = warp_reduce(zt, Sum{});
    if (lane == 0)
      p.entropy[(first_segment + i) * p.entropy_step + kv_head] =
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
  p.keys = cache_rows(op.kv);
  p.d = p.keys.d;
  p.group = static_cast<int>(p.cols / p.d / kv_heads);
  if (p.d > kMaxDim || p.group > kTile)
    throw Error("ScoreBlocks: CUDA takes heads of at most 256 numbers, 64 of them to a KV head");
  p.tile_segments = kTile / p.group;
  p.segment_blocks = static_cast<int>(op.segment / op.kv.layout.block);
  p.first_past = static_cast<int>(first) * p.segment_blocks;
  p.scale = op.scale;
  p.score = op.score.data;
  p.score_rows = op.score.dim(1);
  p.score_cols = op.score.dim(2);
  p.entropy = op.entropy[first][op.layer].data;
  p.entropy_step = op.entropy.dim(1) * op.entropy.dim(2);

  const int64_t past = p.first_past + (p.n_segments - 1) * p.segment_blocks;
  // Thread blocks that are all resident at once, two on a multiprocessor: midpoints are made
  // operands once, and bounds are always under way.
  const unsigned n_tiles = std::max(1u, blocks_for(past, kTile));
  const unsigned n_segment_tiles = blocks_for(p.n_segments, p.tile_segments);
  p.n_tiles = static_cast<int>(n_tiles);
  p.share = static_cast<int>(blocks_for(n_tiles * kv_heads * n_segment_tiles, 2 * n_sms_));
  const dim3 grid(blocks_for(n_tiles, p.share), static_cast<unsigned>(kv_heads), n_segment_tiles);
  if (int64_t{grid.y} * grid.z > kCounters - 2)
    throw Error("ScoreBlocks: too many segments at a time");
  const int64_t n_parts = kv_heads * p.n_segments * p.n_tiles;
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
  const int depth = static_cast<int>(blocks_for(p.d, kDepth)) * kDepth;
  const size_t shared = 2 * sizeof(bf16) * kTile * static_cast<size_t>(row_stride(depth)) +
                        sizeof(float) * kTile * (kTile + 1);
  const bool fours = p.d % 4 == 0;
  const auto kernel = op.kv.layout.bound_dtype() == DType::kBF16
                          ? (fours ? score<bf16, true> : score<bf16, false>)
                          : (fours ? score<float, true> : score<float, false>);
  launch("ScoreBlocks", kernel, grid, 32 * kWarps, shared, stream_, p);
}

}  // namespace ei::cuda
