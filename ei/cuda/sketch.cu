#include <algorithm>
#include <utility>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/operand_rows.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/device/wgmma.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/shares.h"

// EstimateMass by sketches. Queries and keys are projected and rounded to bytes. A sweep of
// products over all keys leaves every query's logits of blocks, in 16 bits, and its highest of
// them; from these the exponentials of groups are made: one number for 8 queries and a block.
//
// Keys lie in memory as operands of the products, an octet of blocks by 16 keys at a time, and so
// that of the 16 times 8 columns thread l of a warp gets all 16 keys of two blocks for its rows:
// the highest needs no other thread. Blocks of other sizes are filled up to a multiple of 16 by
// their last key.
namespace ei::cuda {
namespace {

constexpr int kSlots = 16;     // keys of a block at a time
constexpr int kOctet = 8;      // blocks that are multiplied together
constexpr int kSplit = 128;    // tiles of a thread block, and octets
constexpr int kConsumers = 4;  // warpgroups, each with 64 rows of its own: 8 groups of queries
constexpr int kBlockGroups = 8 * kConsumers;
constexpr int kSweepThreads = 128 * kConsumers;
constexpr int kStages = 4;          // of octets in shared memory
constexpr int kStageBytes = 32768;  // a stage: two octets of 128 bytes a key, four of 64 or eight
constexpr int kBehind = 2;          // stages that a warpgroup may be behind the first
constexpr int kMaxSteps = 6;        // of 16 directions
constexpr int kMaxBlock = 128;      // shared memory holds as many keys in two parts
constexpr int kThreads = 128;       // of projections
constexpr int kQueryRows = 64;      // of a tile of them
constexpr int kUnseen = INT16_MIN;  // the logit of a block without a key that a query sees
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
  int shift;                // what of a product is left out
  // Of every KV head:
  uint32_t* keys;     // [tiles, 2, ...]: see above
  float* key_step;    // [tiles / 2, 4, 2, 2]: as logits, of each tile of the block
  uint32_t* queries;  // [segments, heads, groups, 8, steps * 4]
  float* query_step;  // [rows of queries]
  uint32_t* top;      // [rows of queries] in the order of ordered()
  // Of the segments that are being worked on.
  uint32_t* logits;  // [n_kv_heads, padded_groups(), tiles / 2, 8, 4, 2]: of a row and of two tiles
                     // each two blocks that follow each other, 16 bits of each
  float* e;          // [n_kv_heads, end_group - first_group, octets * 8]
  float* sums;       // [n_kv_heads, end_group - first_group, splits]
  int first_group, end_group;

  __host__ __device__ int64_t octets() const { return (n_blocks + kOctet - 1) / kOctet; }
  __host__ __device__ int64_t splits() const { return (octets() + kSplit - 1) / kSplit; }
  __host__ __device__ int runs() const { return static_cast<int>((block + kSlots - 1) / kSlots); }
  // Of 16 keys of an octet's blocks, those of an octet one after another; whole stages.
  __host__ __device__ int64_t tiles() const { return (octets() * runs() + 7) / 8 * 8; }
  // Up to the end of the group's segment.
  __device__ int tiles_of(int group) const {
    return static_cast<int>(((start_of(group) + segment) / block + kOctet - 1) / kOctet) * runs();
  }
  __host__ __device__ int padded_groups() const {
    return (end_group - first_group + kBlockGroups - 1) / kBlockGroups * kBlockGroups;
  }
  // A key's bytes, with room for whole operands.
  __host__ __device__ static constexpr int row_bytes(int steps) {
    return steps <= 2 ? 32 : steps <= 4 ? 64 : 128;
  }
  // Of a tile.
  __host__ __device__ int tile_words() const { return kOctet * kSlots * row_bytes(steps) / 4; }
  __host__ __device__ int segment_groups() const { return heads * groups; }
  __host__ __device__ int64_t query_rows() const { return n_segments * segment_groups() * 8; }
  // Of the group's segment, in the text.
  __device__ int64_t start_of(int group) const {
    return (first_segment + group / segment_groups()) * segment;
  }
  // Position of query row i of the group among those of its segment, and of head and KV head.
  __device__ int in_segment(int group, int i) const {
    return min(group % groups * 8 + i, static_cast<int>(segment) - 1);
  }
};

// Rows of projections of a tile, in shared memory, and what they are made of.
struct Projection {
  int stride, width;  // of operands, of projections
  bf16 *direction[2], *row[2];
  float* x;
  const void** rows;  // of a tile or of directions

  __host__ __device__ static size_t bytes(int n_rows, int d, int steps) {
    return static_cast<size_t>(2 * (16 * steps + n_rows) * row_stride(d)) * sizeof(bf16) +
           static_cast<size_t>((n_rows * (16 * steps + 1) + 1) / 2 * 2) * sizeof(float) +
           static_cast<size_t>(max(n_rows, 16 * steps)) * sizeof(void*);
  }
  __device__ Projection(unsigned char* shared, int n_rows, int d, int steps)
      : stride(row_stride(d)), width(16 * steps + 1) {
    auto* at = reinterpret_cast<bf16*>(shared);
    for (bf16*& of : direction) of = at, at += 16 * steps * stride;
    for (bf16*& of : row) of = at, at += n_rows * stride;
    x = reinterpret_cast<float*>(at);
    rows = reinterpret_cast<const void**>(x + (n_rows * width + 1) / 2 * 2);
  }
  __device__ void load_directions(const Params& p, int64_t kv_head) {
    const float* from = p.directions + kv_head * p.w * p.rows.d;
    const auto row_at = [&](int i) -> const float* {
      return i < p.w ? from + int64_t{i} * p.rows.d : nullptr;
    };
    load_operands<2>(row_at, 16 * p.steps, p.rows.d, direction[0],
                     reinterpret_cast<const float**>(rows));
    __syncthreads();  // `rows` is free
  }
  // Less `mean` [width - 1], in shared memory.
  template <class T>
  __device__ void multiply(int n_rows, int d, const float* mean) {
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
          for (int e = 0; e < 4; ++e) {
            const int column = c + 8 * t + lane % 4 * 2 + e % 2;
            x[(m + lane / 4 + e / 2 * 8) * width + column] = sum[t][e] - mean[column];
          }
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
  __shared__ float mean[16 * kMaxSteps];
  if (thread < 16 * kMaxSteps) mean[thread] = 0;
  Projection tile(shared, kQueryRows, d, p.steps);
  tile.load_directions(p, kv_head);
  for (int64_t first = int64_t{blockIdx.x} * kQueryRows; first < n_rows;
       first += int64_t{gridDim.x} * kQueryRows) {
    load_operands<1>(
        [&](int i) -> const bf16* {
          if (first + i >= n_rows) return nullptr;
          const int group = static_cast<int>((first + i) / 8), of = group % p.segment_groups();
          const int64_t position = group / p.segment_groups() * p.segment +
                                   p.in_segment(group, static_cast<int>((first + i) % 8));
          return p.q + position * p.q_cols + (kv_head * p.heads + of / p.groups) * d;
        },
        kQueryRows, d, tile.row[0], reinterpret_cast<const bf16**>(tile.rows));
    __syncthreads();
    tile.multiply<bf16>(kQueryRows, d, mean);
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
      p.query_step[row] = step * p.scale * kLog2e * static_cast<float>(1 << p.shift);
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
  const int tile_rows = padded_depth(n_at_once * block), row_bytes = Params::row_bytes(p.steps);
  __shared__ float mean[16 * kMaxSteps];
  if (const int k = static_cast<int>(threadIdx.x); k < 16 * kMaxSteps)
    mean[k] = k < p.w ? p.mean[kv_head * p.w + k] : 0;
  Projection tile(shared, tile_rows, d, p.steps);
  tile.load_directions(p, kv_head);
  for (int64_t first = int64_t{blockIdx.x} * n_at_once; first < p.n_blocks;
       first += int64_t{gridDim.x} * n_at_once) {
    const int n = static_cast<int>(min(int64_t{n_at_once}, p.n_blocks - first));
    load_operands<sizeof(T) / 2>(
        [&](int i) -> const T* {
          return i < n * block ? p.rows.key<T>(kv_head, static_cast<int>(first * block) + i)
                               : nullptr;
        },
        tile_rows, d, tile.row[0], reinterpret_cast<const T**>(tile.rows));
    __syncthreads();
    tile.multiply<T>(tile_rows, d, mean);
    __syncthreads();
    for (int i = warp; i < n; i += kThreads / 32) {
      const float* x = tile.x + i * block * tile.width;
      float most = 0;
      for (int k = lane; k < p.w; k += 32)
#pragma unroll 8
        for (int j = 0; j < block; ++j) most = fmaxf(most, fabsf(x[j * tile.width + k]));
      most = warp_reduce(most, Max{});
      const float step = most / 63, inverse = step > 0 ? 1 / step : 0;
      const int64_t at = first + i, octet = at / kOctet;
      // Thread l of a sweep holds columns 2 (l % 4) and the next of each 8: a pair of its block's
      // keys.
      const int column = static_cast<int>(at % kOctet / 2), half = static_cast<int>(at % 2);
      if (lane < p.runs()) {
        const int64_t tile = octet * p.runs() + lane;
        p.key_step[(kv_head * p.tiles() + tile / 2 * 2) * kOctet + column * 4 + tile % 2 * 2 +
                   half] = step;
      }
      uint32_t* to = p.keys + (kv_head * p.tiles() + octet * p.runs()) * p.tile_words();
      for (int slot = lane / 4; slot < p.runs() * kSlots; slot += 8) {
        const float* from = x + min(slot, block - 1) * tile.width + lane % 4 * 4;
        const int eight = half * 8 + slot % kSlots / 2, in_eight = 2 * column + slot % 2;
        uint32_t* const words =
            to + slot / kSlots * p.tile_words() + (eight * 8 + in_eight) * row_bytes / 4 + lane % 4;
        const int swizzle = in_eight * row_bytes / 128 & (row_bytes / 16 - 1);
        for (int u = 0; u < p.steps; ++u) {
          uint32_t bytes = 0;
#pragma unroll
          for (int e = 0; e < 4; ++e) bytes |= byte_of(from[16 * u + e], inverse, 63) << 8 * e;
          words[(u ^ swizzle) * 4] = bytes;
        }
      }
    }
    __syncthreads();
  }
}

// Of each row's products with the 16 keys of each of two blocks the highest. kCausal: of keys
// first_key .. last_key of the text, the last of them repeated, those up to the row's position.
template <bool kCausal>
__device__ void highest(const int (&products)[64], const int (&first_key)[2],
                        const int (&last_key)[2], const int (&position)[2], int (&most)[2][2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) most[r][0] = most[r][1] = INT32_MIN;
#pragma unroll
  for (int t = 0; t < kSlots / 2; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int pair[2] = {products[32 * half + 4 * t + 2 * r],
                       products[32 * half + 4 * t + 2 * r + 1]};
        if constexpr (kCausal) {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (min(first_key[half] + 2 * t + e, last_key[half]) > position[r]) pair[e] = INT32_MIN;
        }
        most[r][half] = __vimax3_s32(most[r][half], pair[0], pair[1]);
      }
}

// Keys on their way to the warpgroups.
struct Ring {
  uint64_t full[kStages], empty[kStages];
};

// Logits of blocks; blockIdx: rows, tiles, KV head. Warpgroups go through the keys each at its own
// pace, so that one's products hide another's maxima; the first thread has keys copied for all.
template <int kSteps>
__global__ void __launch_bounds__(kSweepThreads, 1) sweep(const __grid_constant__ Params p) {
  constexpr int kRow = Params::row_bytes(kSteps);
  constexpr int kTileBytes = kOctet * kSlots * kRow, kBatch = kStageBytes / kTileBytes;
  extern __shared__ __align__(1024) unsigned char keys[];  // [kStages, kBatch, kTileBytes]
  __shared__ Ring ring;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t kv_head = blockIdx.z;
  const int first_of_block = p.first_group + static_cast<int>(blockIdx.x) * kBlockGroups;
  const int last_of_block = min(first_of_block + kBlockGroups, p.end_group) - 1;
  const int begin = static_cast<int>(blockIdx.y) * kSplit;
  const int end = min(begin + kSplit, p.tiles_of(last_of_block));
  if (begin >= end) return;
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&ring.full[i], 1);
      mbarrier_init(&ring.empty[i], 4 * kConsumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int n_stages = (end - begin + kBatch - 1) / kBatch;
  const auto* const source =
      reinterpret_cast<const unsigned char*>(p.keys) + (kv_head * p.tiles() + begin) * kTileBytes;
  const auto load = [&](int i) {
    if (i >= n_stages) return;
    uint64_t* const full = &ring.full[i % kStages];
    mbarrier_wait(&ring.empty[i % kStages], i / kStages % 2 ^ 1);
    mbarrier_arrive_expect(full, kStageBytes);
    bulk_load(keys + i % kStages * kStageBytes, source + int64_t{i} * kStageBytes, kStageBytes,
              full);
  };
  if (thread == 0)
    for (int i = 0; i < kStages - kBehind; ++i) load(i);

  // This warp's two groups, of which the thread has row lane / 4 each.
  const int first = first_of_block + thread / 32 * 2;
  uint32_t a[(kSteps + 1) / 2][4] = {};
  int position[2];
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int group = min(first + r, p.end_group - 1);
    const int64_t row = kv_head * p.query_rows() + int64_t{group} * 8 + lane / 4;
    position[r] = static_cast<int>(p.start_of(group)) + p.in_segment(group, lane / 4);
#pragma unroll
    for (int u = 0; u < kSteps; ++u)
      a[u / 2][u % 2 * 2 + r] = __ldg(p.queries + (row * kSteps + u) * 4 + lane % 4);
  }
  // Tiles before this are seen whole.
  const int whole =
      static_cast<int>(p.start_of(min(first, p.end_group - 1)) / p.block / kOctet) * p.runs();
  const float4* scales =
      reinterpret_cast<const float4*>(p.key_step) + (kv_head * p.tiles() + begin) * 2 + lane % 4;
  uint2* logits = reinterpret_cast<uint2*>(p.logits) +
                  ((kv_head * p.padded_groups() + first - p.first_group) * p.tiles() + begin) * 16 +
                  lane;
  const int64_t next_group = p.tiles() * 16;
  const int shift = p.shift;

  const auto stage = [&]<bool kCausal>(uint64_t operands, int tile) {
    float4 scale[kBatch / 2];
#pragma unroll
    for (int t = 0; t < kBatch / 2; ++t) scale[t] = __ldg(scales + t * 4);
#pragma unroll
    for (int t = 0; t < kBatch; t += 2) {
      uint32_t words[2][2];  // [row, tile]
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        int products[64];
        pin(products);
        wgmma_fence();
#pragma unroll
        for (int u = 0; u < kSteps; u += 2)
          wgmma_64x128(products, a[u / 2], operands + (t + odd) * (kTileBytes / 16) + u, u > 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin(products);
        int first_key[2], last_key[2], best[2][2];
        if constexpr (kCausal) {
          const int at = tile + t + odd, block = static_cast<int>(p.block);
          const int key = (at / p.runs() * kOctet + lane % 4 * 2) * block;
          first_key[0] = key + at % p.runs() * kSlots, first_key[1] = first_key[0] + block;
          last_key[0] = key + block - 1, last_key[1] = last_key[0] + block;
        }
        highest<kCausal>(products, first_key, last_key, position, best);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            int& of = best[r][half];
            of >>= shift;
            const float by = odd    ? half ? scale[t / 2].w : scale[t / 2].z
                             : half ? scale[t / 2].y
                                    : scale[t / 2].x;
            x[half] = static_cast<float>(of) * by;
            if constexpr (kCausal)
              if (of < kUnseen) of = kUnseen, x[half] = -INFINITY;
          }
          top[r] = fmaxf(top[r], fmaxf(x[0], x[1]));
          words[r][odd] = __byte_perm(best[r][0], best[r][1], 0x5410);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        logits[t * 16 + r * next_group] = make_uint2(words[r][0], words[r][1]);
    }
  };
  const uint64_t operands = operand_rows<kRow>(shared_address(keys));
  int tile = begin;
  for (int i = 0; i < n_stages; ++i) {
    if (thread == 0) load(i + kStages - kBehind);
    __syncwarp();
    mbarrier_wait(&ring.full[i % kStages], i / kStages % 2);
    const uint64_t of_stage = operands + static_cast<uint64_t>(i % kStages * (kStageBytes / 16));
    if (tile + kBatch <= whole) {
      stage.template operator()<false>(of_stage, tile);
    } else {
      stage.template operator()<true>(of_stage, tile);
    }
    if (lane == 0) mbarrier_arrive(&ring.empty[i % kStages]);
    tile += kBatch;
    scales += kBatch * 2;
    logits += kBatch * 16;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(kFullWarp, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(kFullWarp, top[r], 2));
    const int group = min(first + r, p.end_group - 1);
    if (lane % 4 == 0)
      atomicMax(p.top + kv_head * p.query_rows() + int64_t{group} * 8 + lane / 4, ordered(top[r]));
  }
}

// Exponentials of groups and their sums; blockIdx: groups, octets, KV head.
__global__ void __launch_bounds__(kThreads) raise(const __grid_constant__ Params p) {
  __shared__ float parts[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t kv_head = blockIdx.z;
  const int group = p.first_group + static_cast<int>(blockIdx.x);
  const int64_t start = p.start_of(group), of_head = kv_head * p.padded_groups();
  const int begin = static_cast<int>(blockIdx.y) * kSplit;  // octets
  const int end = static_cast<int>(
      min(int64_t{begin} + kSplit, ((start + p.segment) / p.block - 1) / kOctet + 1));
  if (begin >= end) return;
  float step[8], top[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const int64_t row = kv_head * p.query_rows() + int64_t{group} * 8 + r;
    step[r] = __ldg(p.query_step + row);
    top[r] = from_ordered(__ldg(p.top + row));
  }
  const uint32_t* const logits = p.logits + (of_head + blockIdx.x) * p.tiles() * 32;
  const float* const key_step = p.key_step + kv_head * p.tiles() * 8;
  const int64_t at = kv_head * gridDim.x + blockIdx.x;
  float* const e = p.e + at * p.octets() * kOctet;
  const int whole = static_cast<int>(start / p.block), runs = p.runs();
  float sum = 0;
#pragma unroll 2
  for (int i = begin * 4 + thread; i < end * 4; i += kThreads) {  // two blocks of an octet
    float most[2] = {-INFINITY, -INFINITY};
    for (int tile = i / 4 * runs; tile < (i / 4 + 1) * runs; ++tile) {
      const int pair = tile / 2, in_pair = i % 4 * 2 + tile % 2;
      const float2 scale = __ldg(reinterpret_cast<const float2*>(key_step + pair * 16) + in_pair);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const uint32_t word = __ldcs(logits + int64_t{pair} * 64 + r * 8 + in_pair);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int logit = half ? static_cast<int>(word) >> 16 : static_cast<int16_t>(word);
          const float x =
              (static_cast<float>(logit) * (half ? scale.y : scale.x) - top[r]) * step[r];
          if (i * 2 + half < whole || logit != kUnseen) most[half] = fmaxf(most[half], x);
        }
      }
    }
    const float2 both = {exp2_approx(most[0]), exp2_approx(most[1])};
    sum += both.x + both.y;
    reinterpret_cast<float2*>(e)[i] = both;
  }
  sum = block_reduce(sum, Sum{}, parts);
  if (thread == 0) p.sums[at * p.splits() + blockIdx.y] = sum;
}

void start_sweep(const Params& p, int64_t n_kv_heads, Stream& stream) {
  constexpr void (*kSweeps[kMaxSteps])(const Params) = {sweep<1>, sweep<2>, sweep<3>,
                                                        sweep<4>, sweep<5>, sweep<6>};
  const auto kv_heads = static_cast<unsigned>(n_kv_heads);
  const auto n_splits = static_cast<unsigned>(p.splits());
  const int n_groups = p.end_group - p.first_group;
  launch("EstimateMass", kSweeps[p.steps - 1],
         dim3(blocks_for(n_groups, kBlockGroups), blocks_for(p.tiles(), kSplit), kv_heads),
         kSweepThreads, kStages * kStageBytes, stream, p);
  launch("EstimateMass", raise, dim3(static_cast<unsigned>(n_groups), n_splits, kv_heads), kThreads,
         0, stream, p);
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
  p.shift = sketch_shift(p.w);
  const int n_at_once = static_cast<int>(std::max<int64_t>(1, 64 / op.block));
  const int tile_rows = padded_depth(n_at_once * static_cast<int>(op.block));
  const size_t query_bytes = Projection::bytes(kQueryRows, static_cast<int>(d), p.steps);
  const size_t key_bytes = Projection::bytes(tile_rows, static_cast<int>(d), p.steps);
  if (p.steps > kMaxSteps || op.block > kMaxBlock)
    throw Error("EstimateMass: CUDA takes at most 96 directions and blocks of 128 keys");

  // As many segments at a time as there is room for.
  const int64_t of_segment = kv_heads * p.segment_groups() * p.octets() * kOctet;
  const int64_t logits_of_segment = kv_heads * p.segment_groups() * p.tiles() * 32;
  const int64_t at_once =
      std::clamp<int64_t>(kMostExponentials / logits_of_segment, 1, p.n_segments);
  int64_t n_words = 0;
  const auto place = [&](int64_t n) { return std::exchange(n_words, n_words + (n + 3) / 4 * 4); };
  const int64_t logits =
      place(at_once * logits_of_segment + kv_heads * kBlockGroups * p.tiles() * 32);
  const int64_t e = place(at_once * of_segment);
  const int64_t sums = place(kv_heads * at_once * p.segment_groups() * p.splits());
  const int64_t keys = place(kv_heads * p.tiles() * p.tile_words());
  const int64_t queries = place(kv_heads * p.query_rows() * p.steps * 4);
  const int64_t key_step = place(kv_heads * p.tiles() * kOctet);
  const int64_t query_step = place(kv_heads * p.query_rows());
  const int64_t top = place(kv_heads * p.query_rows());
  auto* const words = static_cast<uint32_t*>(scratch(n_words * int64_t{sizeof(uint32_t)}));
  p.logits = words + logits;
  p.e = reinterpret_cast<float*>(words + e);
  p.sums = reinterpret_cast<float*>(words + sums);
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
    start_sweep(p, kv_heads, stream_);
    share_out(op, {segments.begin + s, n},
              {.e = p.e,
               .stride = p.octets() * kOctet,
               .sums = p.sums,
               .parts = p.splits(),
               .part_blocks = kSplit * kOctet,
               .rows = p.segment_groups()},
              stream_);
  }
}

}  // namespace ei::cuda
