#include <algorithm>
#include <utility>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/imma.cuh"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/operand_rows.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/shares.h"

// EstimateMass by sketches. Queries and keys are projected and rounded to bytes. A sweep of
// products over all keys finds every query's highest logit, a second one makes the exponentials of
// groups: what is stored is one number for 8 queries and a block, and not one for every query.
//
// Keys lie in memory in the order in which threads hold them as operands, four blocks by 16 keys at
// a time: of each 8 columns of the product, thread l of a warp gets two keys of block l % 4, so
// that after 8 times 8 columns it has all 16 for its rows and the highest needs no other thread.
// Blocks of other sizes are filled up to a multiple of 16 by their last key.
namespace ei::cuda {
namespace {

constexpr int kSlots = 16;  // keys of a block at a time
constexpr int kOctet = 8;   // blocks that are next to each other in memory
constexpr int kSplit = 32;  // octets of a thread block
constexpr int kWarps = 8;   // of a thread block, each with rows of its own
constexpr int kTiles = 4;   // of 16 rows, two groups, of a warp
constexpr int kWarpGroups = 2 * kTiles;
constexpr int kMaxSteps = 6;    // of 16 directions
constexpr int kMaxBlock = 128;  // shared memory holds as many keys in two parts
constexpr int kThreads = 128;   // of projections
constexpr int kQueryRows = 64;  // of a tile of them
constexpr float kLog2e = 1.44269504f;
static_assert(kSketchGroup == 8);

struct Params {
  // What is estimated: segments [first_segment, first_segment + n_segments) of the text.
  int64_t first_segment, n_segments;
  int64_t segment, block;
  int heads;   // query heads of a KV head
  int groups;  // of 8 queries of a segment and head
  float scale;
  const bf16* q;  // from the first of these segments on
  int64_t q_cols;
  CacheRows rows;
  int64_t n_blocks;         // up to the end of the last segment
  const float* directions;  // [n_kv_heads, w, d]
  const float* mean;        // [n_kv_heads, w]
  int w, steps;             // steps: of 16 directions
  // Of every KV head:
  uint32_t* keys;     // [octets, runs of 16 keys, 2, ...]: see above
  float* key_step;    // [octets * 8]
  uint32_t* queries;  // [segments, heads, groups, 8, steps * 4]
  float* query_step;  // [rows of queries]
  uint32_t* top;      // [rows of queries] in the order of ordered()
  // Of the segments that are being worked on.
  float* e;  // [n_kv_heads, end_group - first_group, octets * 8]
  int first_group, end_group;

  __host__ __device__ int64_t octets() const { return (n_blocks + kOctet - 1) / kOctet; }
  __host__ __device__ int runs() const { return static_cast<int>((block + kSlots - 1) / kSlots); }
  __host__ __device__ int64_t octet_words() const { return runs() * 2 * 256 * steps; }
  __host__ __device__ int segment_groups() const { return heads * groups; }
  __host__ __device__ int64_t query_rows() const { return n_segments * segment_groups() * 8; }
  // Position of query row i of the group among those of its segment, and of head and KV head.
  // Which of a thread's words are those of 16 directions from 16 u on, of its keys t: where a
  // product takes 32 directions, two that are next to each other.
  __host__ __device__ static int word(int steps, int u, int t) {
    return u + 1 == steps && u % 2 == 0 ? 8 * u + t : u / 2 * 16 + 2 * t + u % 2;
  }
  __device__ int in_segment(int group, int i) const {
    return min(group % groups * 8 + i, static_cast<int>(segment) - 1);
  }
};

// Rows of projections of a tile, in shared memory, and what they are made of.
struct Projection {
  int stride, width;  // of operands, of projections
  bf16 *direction[2], *row[2];
  float* x;

  __host__ __device__ static size_t bytes(int n_rows, int d, int steps) {
    return static_cast<size_t>(2 * (16 * steps + n_rows) * row_stride(d)) * sizeof(bf16) +
           static_cast<size_t>(n_rows * (16 * steps + 1)) * sizeof(float);
  }
  __device__ Projection(unsigned char* shared, int n_rows, int d, int steps)
      : stride(row_stride(d)), width(16 * steps + 1) {
    auto* at = reinterpret_cast<bf16*>(shared);
    for (bf16*& of : direction) of = at, at += 16 * steps * stride;
    for (bf16*& of : row) of = at, at += n_rows * stride;
    x = reinterpret_cast<float*>(at);
  }
  __device__ void load_directions(const Params& p, int64_t kv_head) {
    const float* from = p.directions + kv_head * p.w * p.rows.d;
    const auto row_at = [&](int i) { return i < p.w ? from + int64_t{i} * p.rows.d : nullptr; };
    load_operands<2, float>(row_at, 16 * p.steps, p.rows.d, direction[0]);
  }
  template <class T>
  __device__ void multiply(int n_rows, int d) {
    const int depth = padded_depth(d), lane = static_cast<int>(threadIdx.x % 32);
    for (int m = static_cast<int>(threadIdx.x / 32) * 16; m < n_rows; m += kThreads / 2)
      for (int c = 0; c + 1 < width; c += 16) {
        float sum[2][4] = {};
        multiply_tile<16>(sum, row[0] + m * stride, direction[0] + c * stride, depth, stride);
        multiply_tile<16>(sum, row[0] + m * stride, direction[1] + c * stride, depth, stride);
        if constexpr (sizeof(T) == 4)
          multiply_tile<16>(sum, row[1] + m * stride, direction[0] + c * stride, depth, stride);
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            x[(m + lane / 4 + e / 2 * 8) * width + c + 8 * t + lane % 4 * 2 + e % 2] = sum[t][e];
      }
  }
};

__device__ inline uint32_t byte_of(float x, float inverse, int most) {
  const float rounded = rintf(x * inverse);  // NaN is 0
  return static_cast<uint32_t>(fabsf(rounded) <= most ? static_cast<int>(rounded) : 0) & 255;
}

// Queries in bytes; blockIdx.y: KV head.
__global__ void __launch_bounds__(kThreads) project_queries(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int d = p.rows.d, thread = static_cast<int>(threadIdx.x);
  const int64_t kv_head = blockIdx.y, n_rows = p.query_rows();
  Projection tile(shared, kQueryRows, d, p.steps);
  tile.load_directions(p, kv_head);
  for (int64_t first = int64_t{blockIdx.x} * kQueryRows; first < n_rows;
       first += int64_t{gridDim.x} * kQueryRows) {
    load_operands<1, bf16>(
        [&](int i) -> const bf16* {
          if (first + i >= n_rows) return nullptr;
          const int group = static_cast<int>((first + i) / 8), of = group % p.segment_groups();
          const int64_t position = group / p.segment_groups() * p.segment +
                                   p.in_segment(group, static_cast<int>((first + i) % 8));
          return p.q + position * p.q_cols + (kv_head * p.heads + of / p.groups) * d;
        },
        kQueryRows, d, tile.row[0]);
    __syncthreads();
    tile.multiply<bf16>(kQueryRows, d);
    __syncthreads();
    if (thread < kQueryRows && first + thread < n_rows) {
      const float* x = tile.x + thread * tile.width;
      const int64_t row = kv_head * n_rows + first + thread;
      const float step = sketch_step(x, p.w), inverse = step > 0 ? 1 / step : 0;
      for (int k = 0; k < 16 * p.steps; k += 4) {
        uint32_t word = 0;
        for (int e = 0; e < 4; ++e) word |= byte_of(x[k + e], inverse, 127) << 8 * e;
        p.queries[(row * p.steps * 16 + k) / 4] = word;
      }
      p.query_step[row] = step * p.scale * kLog2e;
      p.top[row] = 0;
    }
    __syncthreads();
  }
}

// Keys of whole blocks in bytes, n of them a tile; blockIdx.y: KV head. T is the cache's type.
template <class T>
__global__ void __launch_bounds__(kThreads)
    project_keys(const __grid_constant__ Params p, int n_at_once) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int d = p.rows.d, block = static_cast<int>(p.block);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t kv_head = blockIdx.y;
  const int tile_rows = padded_depth(n_at_once * block);
  Projection tile(shared, tile_rows, d, p.steps);
  tile.load_directions(p, kv_head);
  for (int64_t first = int64_t{blockIdx.x} * n_at_once; first < p.n_blocks;
       first += int64_t{gridDim.x} * n_at_once) {
    const int n = static_cast<int>(min(int64_t{n_at_once}, p.n_blocks - first));
    load_operands<sizeof(T) / 2, T>(
        [&](int i) -> const T* {
          return i < n * block ? p.rows.key<T>(kv_head, static_cast<int>(first * block) + i)
                               : nullptr;
        },
        tile_rows, d, tile.row[0]);
    __syncthreads();
    tile.multiply<T>(tile_rows, d);
    __syncthreads();
    const float* mean = p.mean + kv_head * p.w;
    for (int i = warp; i < n; i += kThreads / 32) {
      float* x = tile.x + i * block * tile.width;
      float most = 0;
      for (int j = lane; j < block * p.w; j += 32) {
        float& value = x[j / p.w * tile.width + j % p.w];
        value -= mean[j % p.w];
        most = fmaxf(most, fabsf(value));
      }
      most = warp_reduce(most, Max{});
      __syncwarp();
      const float step = most / 63, inverse = step > 0 ? 1 / step : 0;
      const int64_t at = first + i, octet = at / kOctet;
      const int column = static_cast<int>(at % kOctet / 2), half = static_cast<int>(at % 2);
      if (lane == 0) p.key_step[kv_head * p.octets() * kOctet + at] = step;
      uint32_t* to = p.keys + (kv_head * p.octets() + octet) * p.octet_words();
      for (int j = lane; j < p.runs() * kSlots * p.steps * 4; j += 32) {
        const int k = j % (p.steps * 4) * 4, slot = j / (p.steps * 4);
        const float* from = x + min(slot, block - 1) * tile.width;
        uint32_t bytes = 0;
        for (int e = 0; e < 4; ++e)
          if (k + e < p.w) bytes |= byte_of(from[k + e], inverse, 63) << 8 * e;
        // Word `word` of thread `holder`, in fours.
        const int holder = (2 * column + slot % 2) * 4 + k % 16 / 4;
        const int word = Params::word(p.steps, k / 16, slot % kSlots / 2);
        to[((slot / kSlots * 2 + half) * 2 * p.steps + word / 4) * 128 + holder * 4 + word % 4] =
            bytes;
      }
    }
    __syncthreads();
  }
}

// The rows of one warp, kTiles times two groups of 8 queries, as this thread holds them: of group
// `g` row lane / 4.
template <int kSteps>
struct WarpRows {
  uint32_t a[kTiles][kSteps][2];
  int position[kWarpGroups];
};

// Of this thread's block among four the highest products with its rows, which go into `best`: of
// 16 keys, first_key .. first_key + 15 of the text. kCausal: rows that see none keep what they
// have.
template <int kSteps, bool kCausal>
__device__ void highest_products(const uint4* keys, const WarpRows<kSteps>& rows, int first_key,
                                 int last_key, int (&best)[kWarpGroups]) {
  uint32_t b[8 * kSteps];
#pragma unroll
  for (int i = 0; i < 2 * kSteps; ++i) {
    const uint4 words = __ldg(keys + 32 * i);
    b[4 * i] = words.x;
    b[4 * i + 1] = words.y;
    b[4 * i + 2] = words.z;
    b[4 * i + 3] = words.w;
  }
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      int sum[4] = {};
#pragma unroll
      for (int u = 0; u + 1 < kSteps; u += 2)
        multiply_bytes_32(sum, rows.a[m][u], rows.a[m][u + 1], b[Params::word(kSteps, u, t)],
                          b[Params::word(kSteps, u + 1, t)]);
      if constexpr (kSteps % 2 == 1)
        multiply_bytes_16(sum, rows.a[m][kSteps - 1], b[Params::word(kSteps, kSteps - 1, t)]);
      if constexpr (kCausal) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (min(first_key + 2 * t + e % 2, last_key) > rows.position[2 * m + e / 2])
            sum[e] = INT32_MIN;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        best[2 * m + r] = __vimax3_s32(best[2 * m + r], sum[2 * r], sum[2 * r + 1]);
    }
  }
}

// What a sweep has of one warp's rows. blockIdx: rows, octets, KV head.
template <int kSteps, bool kExponentials>
__global__ void __launch_bounds__(32 * kWarps, kSteps <= 4 ? 2 : 1)
    sweep(const __grid_constant__ Params p) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t kv_head = blockIdx.z;
  const int first = p.first_group + (static_cast<int>(blockIdx.x) * kWarps + warp) * kWarpGroups;
  if (first >= p.end_group) return;
  const auto group_at = [&](int g) { return min(first + g, p.end_group - 1); };
  const auto start_of = [&](int group) {
    return (p.first_segment + group / p.segment_groups()) * p.segment;
  };
  const int64_t block_end = (start_of(group_at(kWarpGroups - 1)) + p.segment) / p.block;
  const int end =
      static_cast<int>(min((int64_t{blockIdx.y} + 1) * kSplit, (block_end + kOctet - 1) / kOctet));
  if (static_cast<int>(blockIdx.y) * kSplit >= end) return;
  const int whole = static_cast<int>(start_of(first) / p.block / kOctet);  // seen by every row

  WarpRows<kSteps> rows;
  float step[kWarpGroups], top[kWarpGroups];
#pragma unroll
  for (int g = 0; g < kWarpGroups; ++g) {
    const int group = group_at(g);
    rows.position[g] = static_cast<int>(start_of(group)) + p.in_segment(group, lane / 4);
    const int64_t row = kv_head * p.query_rows() + int64_t{group} * 8 + lane / 4;
#pragma unroll
    for (int u = 0; u < kSteps; ++u)
      rows.a[g / 2][u][g % 2] = __ldg(p.queries + (row * kSteps + u) * 4 + lane % 4);
    step[g] = kExponentials ? __ldg(p.query_step + row) : 0;
    top[g] = kExponentials ? from_ordered(__ldg(p.top + row)) : -INFINITY;
  }
  const int64_t stride = p.octets() * kOctet;
  const float* key_step = p.key_step + kv_head * stride;
  for (int octet = static_cast<int>(blockIdx.y) * kSplit; octet < end; ++octet) {
    const auto* keys =
        reinterpret_cast<const uint4*>(p.keys + (kv_head * p.octets() + octet) * p.octet_words()) +
        lane;
    float highest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int block = octet * kOctet + lane % 4 * 2 + half;
      const float scale = __ldg(key_step + block);
      int best[kWarpGroups];
#pragma unroll
      for (int& x : best) x = INT32_MIN;
      for (int run = 0; run < p.runs(); ++run) {
        const uint4* of_run = keys + (run * 2 + half) * 2 * kSteps * 32;
        if (octet < whole) {
          highest_products<kSteps, false>(of_run, rows, 0, 0, best);
        } else {
          const int first_key = block * static_cast<int>(p.block);
          highest_products<kSteps, true>(of_run, rows, first_key + run * kSlots,
                                         first_key + static_cast<int>(p.block) - 1, best);
        }
      }
      float x[kWarpGroups];
#pragma unroll
      for (int g = 0; g < kWarpGroups; ++g) {
        x[g] = best[g] == INT32_MIN ? -INFINITY : static_cast<float>(best[g]) * scale;
        if constexpr (kExponentials) {
          x[g] = best[g] == INT32_MIN ? -INFINITY : (x[g] - top[g]) * step[g];
        } else {
          top[g] = fmaxf(top[g], x[g]);
        }
      }
      if constexpr (kExponentials) {
        // Of 8 groups each the highest of 8 rows: thread l gets that of group l / 4.
#pragma unroll
        for (int n = kWarpGroups / 2; n > 0; n /= 2) {
          const bool upper = (lane & 4 * n) != 0;
#pragma unroll
          for (int g = 0; g < n; ++g) {
            const float other = __shfl_xor_sync(kFullWarp, upper ? x[g] : x[g + n], 4 * n);
            x[g] = fmaxf(upper ? x[g + n] : x[g], other);
          }
        }
        highest[half] = exp2_approx(x[0]);
      }
    }
    if constexpr (kExponentials) {
      const int group = first + lane / 4;
      if (group < p.end_group) {
        const int64_t row = kv_head * (p.end_group - p.first_group) + group - p.first_group;
        auto* to = reinterpret_cast<float2*>(p.e + row * stride + octet * kOctet);
        to[lane % 4] = {highest[0], highest[1]};
      }
    }
  }
  if constexpr (!kExponentials) {
#pragma unroll
    for (int g = 0; g < kWarpGroups; ++g) {
      top[g] = fmaxf(top[g], __shfl_xor_sync(kFullWarp, top[g], 1));
      top[g] = fmaxf(top[g], __shfl_xor_sync(kFullWarp, top[g], 2));
      const int64_t row = kv_head * p.query_rows() + int64_t{group_at(g)} * 8 + lane / 4;
      if (lane % 4 == 0) atomicMax(p.top + row, ordered(top[g]));
    }
  }
}

template <bool kExponentials>
void start_sweep(const Params& p, int64_t n_kv_heads, Stream& stream) {
  constexpr void (*kSweeps[kMaxSteps])(const Params) = {
      sweep<1, kExponentials>, sweep<2, kExponentials>, sweep<3, kExponentials>,
      sweep<4, kExponentials>, sweep<5, kExponentials>, sweep<6, kExponentials>};
  const dim3 grid(blocks_for(p.end_group - p.first_group, kWarps * kWarpGroups),
                  blocks_for(p.octets(), kSplit), static_cast<unsigned>(n_kv_heads));
  launch("EstimateMass", kSweeps[p.steps - 1], grid, 32 * kWarps, 0, stream, p);
}

}  // namespace

void CudaBackend::estimate_by_sketch(const EstimateMass& op, Segments segments) {
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim;
  Params p{};
  p.first_segment = op.begin / op.segment + segments.begin;
  p.n_segments = segments.count;
  p.segment = op.segment;
  p.block = op.block;
  p.heads = static_cast<int>(op.q.cols / d / kv_heads);
  p.groups = static_cast<int>(blocks_for(op.segment, kSketchGroup));
  p.scale = op.scale;
  p.q = static_cast<const bf16*>(op.q.data) + segments.begin * op.segment * op.q.cols;
  p.q_cols = op.q.cols;
  p.rows = cache_rows(op.kv);
  p.n_blocks = (p.first_segment + p.n_segments) * op.segment / op.block;
  p.directions = op.basis.directions.data;
  p.mean = op.basis.mean.data;
  p.w = static_cast<int>(op.basis.n_directions());
  p.steps = static_cast<int>(blocks_for(p.w, 16));
  const int n_at_once = static_cast<int>(std::max<int64_t>(1, 64 / op.block));
  const int tile_rows = padded_depth(n_at_once * static_cast<int>(op.block));
  const size_t query_bytes = Projection::bytes(kQueryRows, static_cast<int>(d), p.steps);
  const size_t key_bytes = Projection::bytes(tile_rows, static_cast<int>(d), p.steps);
  if (p.steps > kMaxSteps || op.block > kMaxBlock)
    throw Error("EstimateMass: CUDA takes at most 96 directions and blocks of 128 keys");

  // As many segments at a time as there is room for.
  const int64_t of_segment = kv_heads * p.segment_groups() * p.octets() * kOctet;
  const int64_t at_once = std::clamp<int64_t>(kMostExponentials / of_segment, 1, p.n_segments);
  int64_t n_words = 0;
  const auto place = [&](int64_t n) { return std::exchange(n_words, n_words + (n + 3) / 4 * 4); };
  const int64_t e = place(at_once * of_segment);
  const int64_t keys = place(kv_heads * p.octets() * p.octet_words());
  const int64_t queries = place(kv_heads * p.query_rows() * p.steps * 4);
  const int64_t key_step = place(kv_heads * p.octets() * kOctet);
  const int64_t query_step = place(kv_heads * p.query_rows());
  const int64_t top = place(kv_heads * p.query_rows());
  auto* const words = static_cast<uint32_t*>(scratch(n_words * int64_t{sizeof(uint32_t)}));
  p.e = reinterpret_cast<float*>(words + e);
  p.keys = words + keys;
  p.queries = words + queries;
  p.key_step = reinterpret_cast<float*>(words + key_step);
  p.query_step = reinterpret_cast<float*>(words + query_step);
  p.top = words + top;

  const auto grid = [&](int64_t n_tiles) {
    return dim3(static_cast<unsigned>(std::min<int64_t>(n_tiles, 4 * n_sms_ / kv_heads + 1)),
                static_cast<unsigned>(kv_heads));
  };
  launch("EstimateMass", project_queries, grid(blocks_for(p.query_rows(), kQueryRows)), kThreads,
         query_bytes, stream_, p);
  launch("EstimateMass",
         op.kv.layout.dtype == DType::kBF16 ? project_keys<bf16> : project_keys<float>,
         grid(blocks_for(p.n_blocks, n_at_once)), kThreads, key_bytes, stream_, p, n_at_once);
  for (int64_t s = 0; s < p.n_segments; s += at_once) {
    const int64_t n = std::min(at_once, p.n_segments - s);
    p.first_group = static_cast<int>(s) * p.segment_groups();
    p.end_group = static_cast<int>(s + n) * p.segment_groups();
    start_sweep<false>(p, kv_heads, stream_);
    start_sweep<true>(p, kv_heads, stream_);
    share_out(op, {segments.begin + s, n},
              {.e = p.e, .stride = p.octets() * kOctet, .rows = p.segment_groups()}, stream_);
  }
}

}  // namespace ei::cuda
