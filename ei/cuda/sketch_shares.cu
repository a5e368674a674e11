#include <cooperative_groups.h>

#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/sketch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 64;  // blocks that a warp adds up
constexpr int kMaxCluster = 8;
constexpr size_t kKept = 64 << 10;       // bytes of exponentials a thread block should have
constexpr size_t kMostKept = 200 << 10;  // and may have

struct Params {
  Sketches of;
  View<float, 3> mass;
  int64_t mass_row;  // of the first segment, as of `own`
  View<float, 2> own;
  float* entropy;  // [n_kv_heads] of the first segment
  int64_t entropy_step;
  bool keeps;  // exponentials, which are made twice otherwise
};

// Exponentials of a group and blocks 2 i and the next, of which those from `past` on may be unseen.
// row: what the group's queries' logits are relative to and multiplied by.
__device__ inline float2 exponentials(const Sketches& p, const uint32_t* logits,
                                      const float* key_step, const float2 (&row)[8], int i,
                                      int past) {
  const int runs = p.runs();
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
            (static_cast<float>(logit) * (half ? scale.y : scale.x) - row[r].x) * row[r].y;
        if (2 * i + half < past || logit != kUnseen) most[half] = fmaxf(most[half], x);
      }
    }
  }
  return make_float2(exp2_approx(most[0]), exp2_approx(most[1]));
}

// A cluster of thread blocks for a segment and KV head, each with some runs of key blocks. What is
// added up when goes by runs alone, so that neither chunks nor the cluster's size change anything.
template <int kCluster>
__global__ void __cluster_dims__(kCluster) __launch_bounds__(kThreads, 3)
    share(const __grid_constant__ Params p) {
  const auto cluster = cooperative_groups::this_cluster();
  const Sketches& of = p.of;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int rank = static_cast<int>(cluster.block_rank()), rows = of.segment_groups();
  const int64_t i = blockIdx.x / kCluster, h = blockIdx.y;
  const int first_group = of.first_group + static_cast<int>(i) * rows;
  const int64_t start = of.start_of(first_group);
  const int past = static_cast<int>(start / of.block);
  const int n = static_cast<int>((start + of.segment) / of.block), n_runs = (n - 1) / kRun + 1;
  const int n_each = (n_runs + kCluster - 1) / kCluster;
  const int begin = min(rank * n_each, n_runs), n_mine = min(n_each, n_runs - begin);
  extern __shared__ __align__(16) float2 shared[];
  float2* const row = shared;           // [rows, 8]
  float2* const kept = row + rows * 8;  // [rows, n_each, kRun / 2]
  float* const sums =                   // [rows, n_each]
      reinterpret_cast<float*>(kept + (p.keeps ? rows * n_each * (kRun / 2) : 0));
  float* const weight = sums + rows * n_each;  // [rows]
  float2* const totals = reinterpret_cast<float2*>(weight + (rows + rows * n_each) % 2 + rows);
  const int64_t first_row = h * of.query_rows() + int64_t{first_group} * 8;
  for (int r = thread; r < rows * 8; r += kThreads)
    row[r] = make_float2(from_ordered(__ldg(of.top + first_row + r)),
                         __ldg(of.query_step + first_row + r));
  __syncthreads();
  const uint32_t* const logits =
      of.logits + (h * of.padded_groups() + first_group - of.first_group) * of.tiles() * 32;
  const float* const key_step = of.key_step + h * of.tiles() * 8;
  const auto make = [&](int g, int b) {
    float2 group[8];
#pragma unroll
    for (int r = 0; r < 8; ++r) group[r] = row[g * 8 + r];
    float2 e = b * 2 < n ? exponentials(of, logits + g * of.tiles() * 32, key_step, group, b, past)
                         : make_float2(0, 0);
    if (2 * b + 1 >= n) e.y = 0;
    return e;
  };

#pragma unroll 2
  for (int at = thread / 32; at < rows * n_mine; at += kThreads / 32) {
    const int g = at / n_mine, run = at % n_mine;
    const float2 e = make(g, (begin + run) * (kRun / 2) + lane);
    if (p.keeps) kept[(g * n_each + run) * (kRun / 2) + lane] = e;
    const float sum = warp_reduce(e.x + e.y, Sum{});
    if (lane == 0) sums[g * n_each + run] = sum;
  }
  cluster.sync();
  for (int g = thread / 32; g < rows; g += kThreads / 32) {
    float sum = 0;
    for (int run = lane; run < n_runs; run += 32)
      sum += cluster.map_shared_rank(sums, run / n_each)[g * n_each + run % n_each];
    sum = warp_reduce(sum, Sum{});
    if (lane == 0) weight[g] = 1 / (static_cast<float>(rows) * sum);
  }
  __syncthreads();
  float* const mass = p.mass.data + (h * p.mass.dims[1] + p.mass_row + i) * p.mass.dims[2];
  for (int run = thread / 32; run < n_mine; run += kThreads / 32) {
    const int b = (begin + run) * (kRun / 2) + lane;
    float part[2] = {};
#pragma unroll 4
    for (int g = 0; g < rows; ++g) {
      const float2 e = p.keeps ? kept[(g * n_each + run) * (kRun / 2) + lane] : make(g, b);
      part[0] += weight[g] * e.x;
      part[1] += weight[g] * e.y;
    }
    float own = 0, entropy = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (2 * b + half < past) {
        mass[2 * b + half] = part[half];
        if (part[half] > 0) entropy -= part[half] * logf(part[half]);
      } else {
        own += part[half];
      }
    }
    own = warp_reduce(own, Sum{});
    entropy = warp_reduce(entropy, Sum{});
    if (lane == 0) totals[run] = make_float2(own, entropy);
  }
  cluster.sync();
  if (rank == 0 && thread < 32) {
    float own = 0, entropy = 0;
    for (int run = lane; run < n_runs; run += 32) {
      const float2 of_run = cluster.map_shared_rank(totals, run / n_each)[run % n_each];
      own += of_run.x, entropy += of_run.y;
    }
    own = warp_reduce(own, Sum{});
    entropy = warp_reduce(entropy, Sum{});
    if (own > 0) entropy -= own * logf(own);
    if (lane == 0) {
      p.own.data[h * p.own.dims[1] + p.mass_row + i] = own;
      p.entropy[i * p.entropy_step + h] = fmaxf(0.0f, entropy);
    }
  }
  cluster.sync();  // nobody leaves while its shared memory is read
}

template <int kCluster = 1>
void start(Params p, int64_t n_segments, int64_t n_kv_heads, int64_t n_blocks, Stream& stream) {
  const auto rows = static_cast<size_t>(p.of.segment_groups());
  const auto n_each = static_cast<size_t>((n_blocks + kRun * kCluster - 1) / (kRun * kCluster));
  const size_t kept = rows * n_each * kRun * sizeof(float);
  if constexpr (kCluster < kMaxCluster)
    if (kept > kKept) return start<2 * kCluster>(p, n_segments, n_kv_heads, n_blocks, stream);
  p.keeps = kept <= kMostKept;
  launch("EstimateMass", share<kCluster>,
         dim3(static_cast<unsigned>(n_segments * kCluster), static_cast<unsigned>(n_kv_heads)),
         kThreads,
         (p.keeps ? kept : 0) + rows * 8 * sizeof(float2) +
             (rows + 1) * (n_each + 1) * sizeof(float) + (n_each + 1) * sizeof(float2),
         stream, p);
}

}  // namespace

void share_sketches(const Sketches& of, const EstimateMass& op, Segments segments, Stream& stream) {
  const int64_t first = op.begin / op.segment + segments.begin;
  const Params p = {.of = of,
                    .mass = op.mass,
                    .mass_row = segments.begin,
                    .own = op.own,
                    .entropy = op.entropy[first][op.layer].data,
                    .entropy_step = op.entropy.dim(1) * op.entropy.dim(2),
                    .keeps = true};
  start(p, segments.count, op.kv.n_kv_heads(), (first + segments.count) * op.segment / op.block,
        stream);
}

}  // namespace ei::cuda
