#include <algorithm>
#include <cmath>

#include "ei/base/error.h"
#include "ei/cuda/attention_tiles.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/simple_attention.h"

// Decode attention: bound by reading the cache once. A block takes one part of the rows of one KV
// head, for all its query heads together: they are the rows of tensor-core products, so that even
// 16 of them cost no more than one. Tiles of 64 keys arrive asynchronously, three in flight; each
// warp keeps its own online softmax over its 16 keys of every tile. Parts are merged by the last
// block of a head to finish.
namespace ei::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kKeys = 16 * kWarps;  // of a tile
constexpr int kStages = 3;
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

template <int kD>
struct Shared {
  uint4 k[kStages][kKeys * kD / 8];  // rows of kD / 8 chunks, chunk c of row r at c ^ r % 8
  uint4 v[kStages][kKeys * kD / 8];
};

template <int kD>
__device__ void load_tile(const CacheRows& rows, int64_t kv_head, int first, int end, uint4* k,
                          uint4* v) {
  constexpr int kChunks = kD / 8;
#pragma unroll
  for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = at / kChunks, chunk = at % kChunks, to = row * kChunks + (chunk ^ row % 8);
    const bool valid = first + row < end;
    const bf16* key = rows.key<bf16>(kv_head, valid ? first + row : first) + 8 * chunk;
    copy_async_16(&k[to], key, valid);
    copy_async_16(&v[to], key + int64_t{rows.first_value} * kD, valid);
  }
}

template <int kD>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char raw[];
  auto& shared = *reinterpret_cast<Shared<kD>*>(raw);
  constexpr int kChunks = kD / 8;
  const Params::Sequence& sequence = p.sequences[blockIdx.z];
  const int kv_head = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.x);
  if (kv_head >= sequence.n_kv_heads) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = sequence.group, n = sequence.n_rows[kv_head];
  const int n_tiles = (n + kKeys - 1) / kKeys, per_part = (n_tiles + p.n_splits - 1) / p.n_splits;
  const int begin = part * per_part * kKeys, end = min(n, begin + per_part * kKeys);
  const int64_t first_head = int64_t{blockIdx.z} * p.n_heads + int64_t{kv_head} * group;

  // Query heads are rows of the products; those beyond the group are zero.
  uint32_t q[kD / 16][4];
#pragma unroll
  for (int i = 0; i < kD / 16; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int head = lane / 4 + e % 2 * 8, c = 16 * i + e / 2 * 8 + lane % 4 * 2;
      q[i][e] =
          head < group ? *reinterpret_cast<const uint32_t*>(p.q + (first_head + head) * kD + c) : 0;
    }
  }

  float o[kD / 8][4] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {0, 0};
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s * kKeys < end)
      load_tile<kD>(sequence.rows, kv_head, begin + s * kKeys, end, shared.k[s], shared.v[s]);
    copy_async_commit();
  }
  const int matrix = lane / 8, row = lane % 8;
  int stage = 0;
  for (int first = begin; first < end; first += kKeys) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    const int ahead = first + (kStages - 1) * kKeys, to = (stage + kStages - 1) % kStages;
    if (ahead < end) load_tile<kD>(sequence.rows, kv_head, ahead, end, shared.k[to], shared.v[to]);
    copy_async_commit();

    float s[2][4] = {};
    const int key_row = warp * 16 + matrix / 2 * 8 + row;
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      uint32_t k[4];
      ldmatrix_x4(k, &shared.k[stage][key_row * kChunks + ((2 * i + matrix % 2) ^ row)]);
      mma_16816(s[0], q[i], k[0], k[1]);
      mma_16816(s[1], q[i], k[2], k[3]);
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
          x = key < end ? x * p.scale_log2 : -INFINITY;
          most = fmaxf(most, x);
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
          x = exp2_approx(x - most);
          sum[r] += x;
        }
      }
    }
    const uint32_t probs[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                               pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
    const int value_row = warp * 16 + matrix % 2 * 8 + row;
#pragma unroll
    for (int t = 0; t < kD / 8; t += 2) {
      uint32_t v[4];
      ldmatrix_x4_transposed(v, &shared.v[stage][value_row * kChunks + ((t + matrix / 2) ^ row)]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[t + u][e] *= rescale[e / 2];
        mma_16816(o[t + u], probs, v[2 * u], v[2 * u + 1]);
      }
    }
    stage = (stage + 1) % kStages;
  }
  copy_async_wait<0>();
  __syncthreads();

  // Merge the warps.
  auto* warp_sums = reinterpret_cast<float*>(raw);  // [kWarps, group, kD]
  auto* warp_softmax =
      reinterpret_cast<float2*>(warp_sums + kWarps * kMaxGroup * kD);  // + [kWarps, group]
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    const int head = lane / 4 + 8 * r;
    if (head >= group) continue;
    if (lane % 4 == 0) warp_softmax[warp * kMaxGroup + head] = make_float2(top[r], sum[r]);
#pragma unroll
    for (int t = 0; t < kD / 8; ++t) {
      float* to = warp_sums + (warp * kMaxGroup + head) * kD + 8 * t + lane % 4 * 2;
      to[0] = o[t][2 * r];
      to[1] = o[t][2 * r + 1];
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
      total += factor * warp_sums[(w * kMaxGroup + head) * kD + c];
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
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    const auto last = static_cast<uint32_t>(p.n_splits - 1);
    is_last = atomicInc(&p.done[blockIdx.z * gridDim.y + blockIdx.y], last) == last;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
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
#pragma unroll 8
    for (int s = 0; s < p.n_splits; ++s) {
      const float4 x = __ldcg(reinterpret_cast<const float4*>(sums + s * kD));
      const float w = weights[head * p.n_splits + s];
      total = {total.x + w * x.x, total.y + w * x.y, total.z + w * x.z, total.w + w * x.w};
    }
    *reinterpret_cast<uint2*>(p.out + (first_head + head) * kD + c) = {pack_bf16(total.x, total.y),
                                                                       pack_bf16(total.z, total.w)};
  }
}

template <int kD>
void start(const Params& p, size_t n_sequences, int64_t most_heads, Stream& stream) {
  const size_t merge = sizeof(float) * kWarps * kMaxGroup * (kD + 2);
  const dim3 grid(static_cast<unsigned>(p.n_splits), static_cast<unsigned>(most_heads),
                  static_cast<unsigned>(n_sequences));
  launch("DecodeAttention", attend<kD>, grid, kThreads, std::max(sizeof(Shared<kD>), merge), stream,
         p);
}

bool is_fast(const DecodeAttention& op) {
  return std::all_of(op.kv.begin(), op.kv.end(), [&](const KvLayer& kv) {
    const int64_t d = kv.layout.head_dim, group = op.q.cols / d / kv.n_kv_heads();
    return kv.layout.dtype == DType::kBF16 && (d == 64 || d == 128) && group <= kMaxGroup;
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
    p.n_heads = static_cast<int>(n_heads);
    p.n_splits = static_cast<int>(decode_splits(n_lists, rows_bound, n_sms_));
    p.scale_log2 = op.scale * static_cast<float>(M_LOG2E);
    p.q = static_cast<const bf16*>(op.q.data) + static_cast<int64_t>(s) * op.q.cols;
    p.out = static_cast<bf16*>(op.out.data) + static_cast<int64_t>(s) * op.q.cols;
    const int64_t slots = n * n_heads * p.n_splits;
    p.sums = static_cast<float*>(scratch(slots * (d + 2) * int64_t{sizeof(float)}));
    p.softmax = reinterpret_cast<float2*>(p.sums + slots * d);
    p.done = counters() + 2;  // the first two are SparseAttention's
    if (n * most_heads > kCounters - 2) throw Error("DecodeAttention: too many heads at a time");
    d == 128 ? start<128>(p, batch.size(), most_heads, stream_)
             : start<64>(p, batch.size(), most_heads, stream_);
  }
}

}  // namespace ei::cuda
