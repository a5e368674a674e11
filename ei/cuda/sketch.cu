#include <algorithm>
#include <utility>

#include "ei/base/error.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/device/wgmma.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/shares.h"
#include "ei/cuda/sketch.cuh"

namespace ei::cuda {
namespace {

constexpr int kConsumers = kBlockGroups / 8;  // warpgroups, each with 64 rows of its own
constexpr int kSweepThreads = 128 * kConsumers;
constexpr int kStages = 4;          // of tiles in shared memory
constexpr int kStageBytes = 32768;  // a stage: two tiles of 128 bytes a key, four of 64 or eight
constexpr int kBehind = 2;          // stages that a warpgroup may be behind the first
constexpr int kRaiseThreads = 128;
constexpr int64_t kMostLogits = int64_t{128} << 20;  // at a time, in words of two

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
        most[r][half] = max(max(most[r][half], pair[0]), pair[1]);
      }
}

// Two numbers of 16 bits in a word.
__device__ inline uint32_t pack_halves(int low, int high) {
  return static_cast<uint32_t>(high) << 16 | (static_cast<uint32_t>(low) & 0xffff);
}

// Keys on their way to the warpgroups.
struct Ring {
  uint64_t full[kStages], empty[kStages];
};

// Logits of blocks; blockIdx: rows, tiles, KV head. Warpgroups go through the keys each at its own
// pace, so that one's products hide another's maxima; the first thread has keys copied for all.
template <int kSteps>
__global__ void __launch_bounds__(kSweepThreads, 1) sweep(const __grid_constant__ Sketches p) {
  constexpr int kRow = Sketches::row_bytes(kSteps);
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
    position[r] = static_cast<int>(p.start_of(group)) + static_cast<int>(__ldg(p.asked + row));
#pragma unroll
    for (int u = 0; u < kSteps; ++u)
      a[u / 2][u % 2 * 2 + r] = __ldg(p.queries + (row * kSteps + u) * 4 + lane % 4);
  }
  // Tiles before this are seen whole.
  const int whole =
      static_cast<int>(p.start_of(min(first, p.end_group - 1)) / p.block / kOctet) * p.runs();
  const float4* scales =
      reinterpret_cast<const float4*>(p.key_step) + (kv_head * p.tiles() + begin) * 2 + lane % 4;
  uint32_t* logits =
      p.logits + ((kv_head * p.padded_groups() + first - p.first_group) * p.tiles() + begin) * 32 +
      lane * 2;
  const int64_t next_group = p.tiles() * 32;
  const int shift = p.shift;

  // A tile's logits of the thread's two rows, two blocks each.
  const auto multiply = [&]<bool kCausal>(uint64_t operand, int tile, float2 scale, uint32_t* to) {
    int products[64];
    pin(products);
    wgmma_fence();
#pragma unroll
    for (int u = 0; u < kSteps; u += 2) wgmma_64x128(products, a[u / 2], operand + u, u > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(products);
    int first_key[2], last_key[2], best[2][2];
    if constexpr (kCausal) {
      const int block = static_cast<int>(p.block), runs = p.runs();
      const int key = (tile / runs * kOctet + lane % 4 * 2) * block;
      first_key[0] = key + tile % runs * kSlots, first_key[1] = first_key[0] + block;
      last_key[0] = key + block - 1, last_key[1] = last_key[0] + block;
    }
    highest<kCausal>(products, first_key, last_key, position, best);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int logit = best[r][half] >> shift;
        best[r][half] = kCausal ? max(logit, kUnseen) : logit;
        const float x = static_cast<float>(logit) * (half ? scale.y : scale.x);
        if (!kCausal || logit > kUnseen) top[r] = fmaxf(top[r], x);
      }
    }
    // Before the next products: held back, the compiler (CUDA 13.0) takes one tile's words for
    // those of the next.
    to[0] = pack_halves(best[0][0], best[0][1]);
    to[next_group] = pack_halves(best[1][0], best[1][1]);
  };
  const auto stage = [&]<bool kCausal>(uint64_t operand, int tile) {
    float4 scale[kBatch / 2];
#pragma unroll
    for (int t = 0; t < kBatch / 2; ++t) scale[t] = __ldg(scales + t * 4);
#pragma unroll
    for (int t = 0; t < kBatch; ++t) {
      const float4 of = scale[t / 2];
      multiply.template operator()<kCausal>(
          operand + t * (kTileBytes / 16), tile + t,
          t % 2 == 0 ? make_float2(of.x, of.y) : make_float2(of.z, of.w),
          logits + t / 2 * 64 + t % 2);
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
    logits += kBatch * 32;
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
__global__ void __launch_bounds__(kRaiseThreads) raise(const __grid_constant__ Sketches p) {
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
  for (int i = begin * 4 + thread; i < end * 4; i += kRaiseThreads) {  // two blocks of an octet
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

}  // namespace

void CudaBackend::estimate_by_sketch(const EstimateMass& op, Segments segments) {
  const int64_t kv_heads = op.kv.n_kv_heads(), d = op.kv.layout.head_dim;
  Sketches p{};
  p.first_segment = op.begin / op.segment + segments.begin;
  p.n_segments = segments.count;
  p.segment = op.segment;
  p.block = op.block;
  p.heads = static_cast<int>(op.q.cols / d / kv_heads);
  p.groups = static_cast<int>(sketch_groups(op.segment));
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
  if (p.steps > kMaxSteps) throw Error("EstimateMass: CUDA takes at most 96 directions");

  // As many segments at a time as there is room for.
  const int64_t of_segment = kv_heads * p.segment_groups() * p.tiles() * 32;
  const int64_t at_once = std::clamp<int64_t>(kMostLogits / of_segment, 1, p.n_segments);
  int64_t n_words = 0;
  const auto place = [&](int64_t n) { return std::exchange(n_words, n_words + (n + 3) / 4 * 4); };
  const int64_t logits = place(at_once * of_segment + kv_heads * kBlockGroups * p.tiles() * 32);
  const int64_t e = place(at_once * kv_heads * p.segment_groups() * p.octets() * kOctet);
  const int64_t sums = place(at_once * kv_heads * p.segment_groups() * p.splits());
  const int64_t keys = place(kv_heads * p.tiles() * p.tile_words());
  const int64_t queries = place(kv_heads * p.query_rows() * p.steps * 4);
  const int64_t asked = place(kv_heads * p.query_rows());
  const int64_t key_step = place(kv_heads * p.tiles() * kOctet);
  const int64_t query_step = place(kv_heads * p.query_rows());
  const int64_t top = place(kv_heads * p.query_rows());
  auto* const words = static_cast<uint32_t*>(scratch(n_words * int64_t{sizeof(uint32_t)}));
  p.logits = words + logits;
  p.e = reinterpret_cast<float*>(words + e);
  p.sums = reinterpret_cast<float*>(words + sums);
  p.keys = words + keys;
  p.queries = words + queries;
  p.asked = words + asked;
  p.key_step = reinterpret_cast<float*>(words + key_step);
  p.query_step = reinterpret_cast<float*>(words + query_step);
  p.top = words + top;

  project_sketches(p, kv_heads, op.kv.layout.dtype == DType::kBF16, n_sms_, stream_);
  for (int64_t s = 0; s < p.n_segments; s += at_once) {
    const int64_t n = std::min(at_once, p.n_segments - s);
    p.first_group = static_cast<int>(s) * p.segment_groups();
    p.end_group = static_cast<int>(s + n) * p.segment_groups();
    const dim3 grid(blocks_for(p.end_group - p.first_group, kBlockGroups),
                    blocks_for(p.tiles(), kSplit), static_cast<unsigned>(kv_heads));
    with_steps(p.steps, [&]<int kSteps> {
      launch("EstimateMass", sweep<kSteps>, grid, kSweepThreads, kStages * kStageBytes, stream_, p);
    });
    launch("EstimateMass", raise,
           dim3(static_cast<unsigned>(p.end_group - p.first_group),
                static_cast<unsigned>(p.splits()), static_cast<unsigned>(kv_heads)),
           kRaiseThreads, 0, stream_, p);
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
