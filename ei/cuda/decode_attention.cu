#include <algorithm>
#include <cmath>

#include "ei/base/error.h"
#include "ei/cuda/attention_tiles.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/decode_tiles.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/simple_attention.h"

// Decode attention: bound by reading the cache once. A block takes one part of the rows of one KV
// head, for all its query heads together: they are the rows of tensor-core products, so that even
// 16 of them cost no more than one. Tiles of 64 keys arrive asynchronously, the next during this
// one; each warp keeps its own online softmax over its 16 keys of every tile. Parts are merged by
// the last block of a head to finish.
namespace ei::cuda {
namespace {

constexpr int kWarps = kDecodeWarps, kThreads = kDecodeThreads, kKeys = kDecodeKeys;
constexpr int kMaxGroup = 16;
static_assert(kMaxSplits % 32 == 0);

struct Params {
  struct Sequence {
    CacheRows rows;
    const int32_t* n_rows;
    int n_kv_heads;
    int group;
  };
  Sequence sequences[kMaxSequences];
  const bf16* q;
  bf16* out;
  int n_heads;
  int n_splits;
  float scale_log2;
  float* sums;      // [n_sequences, n_heads, n_splits, d] of values weighted by e^(score - top)
  float2* softmax;  // [n_sequences, n_heads, n_splits] top, sum of weights
  uint32_t* done;   // [n_sequences, most KV heads] parts finished
};

template <class Tile>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char raw[];
  constexpr int kStages = Tile::kStages;
  auto* tiles = reinterpret_cast<Tile*>(raw);  // [kStages]
  constexpr int kD = Tile::kD;
  const Params::Sequence& sequence = p.sequences[blockIdx.z];
  const int kv_head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.x);
  if (kv_head >= sequence.n_kv_heads) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = sequence.group, n = sequence.n_rows[kv_head];
  const int n_tiles = (n + kKeys - 1) / kKeys, per_part = (n_tiles + p.n_splits - 1) / p.n_splits;
  const int begin = part * per_part * kKeys, end = min(n, begin + per_part * kKeys);
  const int64_t first_head = int64_t{blockIdx.z} * p.n_heads + int64_t{kv_head} * group;

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s * kKeys < end) tiles[s].load(sequence.rows, kv_head, begin + s * kKeys, end);
    copy_async_commit();
  }

  // Query heads are rows of the products; those beyond the group are zero.
  typename Tile::Query q;
#pragma unroll
  for (int i = 0; i < kD / 16; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int head = lane / 4 + e % 2 * 8;
      q[i][e] = head < group ? Tile::query(p.q + (first_head + head) * kD, i, e) : 0;
    }
  }

  float o[kD / 8][4] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
  int stage = 0;
  for (int first = begin; first < end; first += kKeys) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    const int ahead = first + (kStages - 1) * kKeys, to = (stage + kStages - 1) % kStages;
    if (ahead < end) tiles[to].load(sequence.rows, kv_head, ahead, end);
    copy_async_commit();

    float s[2][4] = {};
    const Tile& tile = tiles[stage];
    tile.scores(s, q, warp * 16);
    float key_scale[2][2], log_value_scale[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp * 16 + i / 2 * 8 + lane % 4 * 2 + i % 2;
      key_scale[i / 2][i % 2] = tile.key_scale(row) * p.scale_log2;
      log_value_scale[i / 2][i % 2] = tile.log_value_scale(row);
    }
    float rescale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = top[r];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[t][2 * r + e];
          const int key = first + warp * 16 + 8 * t + lane % 4 * 2 + e;
          x = key < end ? x * key_scale[t][e] : -INFINITY;
          most = fmaxf(most, x + log_value_scale[t][e]);
        }
      }
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      rescale[r] = exp2_approx(top[r] - most);
      top[r] = most;
      sum[r] *= rescale[r];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[t][2 * r + e];
          const float weight = exp2_approx(x - most);
          sum[r] += weight;
          x = Tile::kScaled ? exp2_approx(x + log_value_scale[t][e] - most) : weight;
        }
      }
    }
    tile.add_values(o, s, rescale, warp * 16);
    stage = (stage + 1) % kStages;
  }
  copy_async_wait<0>();
  __syncthreads();

  // Merge the warps. Each quarter of a row is a number further, so that the banks differ of what
  // the lanes of a warp store.
  constexpr int kRow = kD + 4;
  auto* warp_sums = reinterpret_cast<float*>(raw);  // [kWarps, group, kRow]
  auto* warp_softmax =
      reinterpret_cast<float2*>(warp_sums + kWarps * kMaxGroup * kRow);  // + [kWarps, group]
  const auto sum_at = [&](int w, int head, int c) -> float& {
    return warp_sums[(w * kMaxGroup + head) * kRow + c + c / (kD / 4)];
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    const int head = lane / 4 + 8 * r;
    if (head >= group) continue;
    if (lane % 4 == 0) warp_softmax[warp * kMaxGroup + head] = make_float2(top[r], sum[r]);
#pragma unroll
    for (int t = 0; t < kD / 8; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) sum_at(warp, head, Tile::column(t, e)) = o[t][2 * r + e];
    }
  }
  __syncthreads();
  for (int i = thread; i < group * kD; i += kThreads) {
    const int head = i / kD, c = i % kD;
    float most = -1e30f, total = 0, weight = 0;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, warp_softmax[w * kMaxGroup + head].x);
    for (int w = 0; w < kWarps; ++w) {
      const float2 of_warp = warp_softmax[w * kMaxGroup + head];
      const float factor = exp2_approx(of_warp.x - most);
      total += factor * sum_at(w, head, c);
      weight += factor * of_warp.y;
    }
    if (p.n_splits == 1) {
      p.out[(first_head + head) * kD + c] = __float2bfloat16_rn(total / weight);
    } else {
      const int64_t slot = (first_head + head) * p.n_splits + part;
      p.sums[slot * kD + c] = total;
      if (c == 0) p.softmax[slot] = make_float2(most, weight);
    }
  }
  if (p.n_splits == 1) return;

  // The last part of this head to arrive merges them all.
  __shared__ bool is_last;
  __syncthreads();
  if (thread == 0) {  // fences for all, who have met and will meet it at barriers
    const auto last = static_cast<uint32_t>(p.n_splits - 1);
    __threadfence();
    is_last = atomicInc(&p.done[blockIdx.z * gridDim.y + blockIdx.y], last) == last;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  auto* weights = reinterpret_cast<float*>(raw);  // [group, n_splits]
  for (int head = warp; head < group; head += kWarps) {
    const int64_t slot = (first_head + head) * p.n_splits;
    float2 parts[kMaxSplits / 32];
    float most = -1e30f, weight = 0;
#pragma unroll
    for (int j = 0; j < kMaxSplits / 32; ++j) {
      const int s = lane + 32 * j;
      parts[j] = s < p.n_splits ? __ldcg(&p.softmax[slot + s]) : make_float2(-1e30f, 0);
      most = fmaxf(most, parts[j].x);
    }
    most = warp_reduce(most, Max{});
#pragma unroll
    for (int j = 0; j < kMaxSplits / 32; ++j) {
      parts[j].x = exp2_approx(parts[j].x - most);
      weight += parts[j].x * parts[j].y;
    }
    weight = warp_reduce(weight, Sum{});
#pragma unroll
    for (int j = 0; j < kMaxSplits / 32; ++j) {
      const int s = lane + 32 * j;
      if (s < p.n_splits) weights[head * p.n_splits + s] = parts[j].x / weight;
    }
  }
  __syncthreads();
  for (int i = thread; i < group * kD / 4; i += kThreads) {
    const int head = i / (kD / 4), c = i % (kD / 4) * 4;
    const float* sums = p.sums + (first_head + head) * p.n_splits * kD + c;
    float4 total{};
    constexpr int kBatch = 16;  // under way at once
    for (int first = 0; first < p.n_splits; first += kBatch) {
      float4 x[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        x[j] = __ldcg(reinterpret_cast<const float4*>(sums + min(first + j, p.n_splits - 1) * kD));
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float w = first + j < p.n_splits ? weights[head * p.n_splits + first + j] : 0;
        total = {total.x + w * x[j].x, total.y + w * x[j].y, total.z + w * x[j].z,
                 total.w + w * x[j].w};
      }
    }
    *reinterpret_cast<uint2*>(p.out + (first_head + head) * kD + c) = {pack_bf16(total.x, total.y),
                                                                       pack_bf16(total.z, total.w)};
  }
}

template <class Tile>
void start(const Params& p, size_t n_sequences, int64_t most_heads, Stream& stream) {
  const size_t merge = sizeof(float) * kWarps * kMaxGroup * (Tile::kD + 6);
  const dim3 grid(static_cast<unsigned>(p.n_splits), static_cast<unsigned>(most_heads),
                  static_cast<unsigned>(n_sequences));
  launch("DecodeAttention", attend<Tile>, grid, kThreads,
         std::max(Tile::kStages * sizeof(Tile), merge), stream, p);
}

bool is_fast(const DecodeAttention& op) {
  if (op.kv.empty()) return true;
  const DType dtype = op.kv[0].layout.dtype;
  return std::all_of(op.kv.begin(), op.kv.end(), [&](const KvLayer& kv) {
    const int64_t d = kv.layout.head_dim, group = op.q.cols / d / kv.n_kv_heads();
    return dtype != DType::kF32 && kv.layout.dtype == dtype && (d == 64 || d == 128) &&
           group <= kMaxGroup;
  });
}

}  // namespace

void CudaBackend::run(const DecodeAttention& op) {
  check(op);
  if (!is_fast(op)) return attend_simply(op, stream_);
  for (size_t s = 0; s < op.kv.size(); s += kMaxSequences) {
    const auto batch = op.kv.subspan(s, std::min(kMaxSequences, op.kv.size() - s));
    const int64_t d = batch[0].layout.head_dim, n_heads = op.q.cols / d;
    const auto n = static_cast<int64_t>(batch.size());
    Params p{};
    int64_t most_heads = 0, n_lists = 0, rows_bound = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      const int64_t kv_heads = batch[i].n_kv_heads();
      p.sequences[i] = {cache_rows(batch[i]), batch[i].n_rows.data, static_cast<int>(kv_heads),
                        static_cast<int>(n_heads / kv_heads)};
      most_heads = std::max(most_heads, kv_heads);
      n_lists += kv_heads;
      rows_bound = std::max(rows_bound, batch[i].rows_bound);
    }
    const bool is_e4m3 = batch[0].layout.dtype == DType::kFP8;
    const int resident = is_e4m3 ? 3 : 2;  // thread blocks on a multiprocessor
    p.n_heads = static_cast<int>(n_heads);
    p.n_splits = static_cast<int>(decode_splits(n_lists, rows_bound, resident * n_sms_));
    p.scale_log2 = op.scale * static_cast<float>(M_LOG2E);
    p.q = static_cast<const bf16*>(op.q.data) + static_cast<int64_t>(s) * op.q.cols;
    p.out = static_cast<bf16*>(op.out.data) + static_cast<int64_t>(s) * op.q.cols;
    const int64_t slots = n * n_heads * p.n_splits;
    p.sums = static_cast<float*>(scratch(slots * (d + 2) * int64_t{sizeof(float)}));
    p.softmax = reinterpret_cast<float2*>(p.sums + slots * d);
    p.done = counters() + 2;  // the first two are SparseAttention's
    if (n * most_heads > kCounters - 2) throw Error("DecodeAttention: too many heads at a time");
    const auto start_with = [&]<template <int> class Tile>() {
      d == 128 ? start<Tile<128>>(p, batch.size(), most_heads, stream_)
               : start<Tile<64>>(p, batch.size(), most_heads, stream_);
    };
    is_e4m3 ? start_with.operator()<E4m3Tile>() : start_with.operator()<Bf16Tile>();
  }
}

}  // namespace ei::cuda
