#include <cooperative_groups.h>

#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/sketch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCluster = 8;
constexpr size_t kMostKept = 200 << 10;  // bytes of exponentials in shared memory

struct Params {
  Sketches of;
  View<float, 3> mass;
  int64_t mass_row;  // of the first segment, as of `own`
  View<float, 2> own;
  float* entropy;  // [n_kv_heads] of the first segment
  int64_t entropy_step;
  bool keeps;  // exponentials, which are made twice otherwise
};

// A group's rows.
struct Group {
  const uint32_t* logits;
  float top[8], step[8];

  __device__ Group(const Sketches& p, int64_t kv_head, int group)
      : logits(p.logits + (kv_head * p.padded_groups() + group - p.first_group) * p.tiles() * 32) {
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int64_t row = kv_head * p.query_rows() + int64_t{group} * 8 + r;
      step[r] = __ldg(p.query_step + row);
      top[r] = from_ordered(__ldg(p.top + row));
    }
  }
  // Exponentials of blocks 2 i and the next, of which those from `past` on may be unseen.
  __device__ float2 exponentials(const Sketches& p, int64_t kv_head, int i, int past) const {
    const int runs = p.runs();
    const float* const key_step = p.key_step + kv_head * p.tiles() * 8;
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
          if (2 * i + half < past || logit != kUnseen) most[half] = fmaxf(most[half], x);
        }
      }
    }
    return make_float2(exp2_approx(most[0]), exp2_approx(most[1]));
  }
};

// A cluster of thread blocks for a segment and KV head, each with a run of key blocks. Which thread
// adds what goes by the segment's position alone, so that chunks change nothing.
__global__ void __cluster_dims__(kCluster) __launch_bounds__(kThreads)
    share(const __grid_constant__ Params p) {
  const auto cluster = cooperative_groups::this_cluster();
  const Sketches& of = p.of;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int rank = static_cast<int>(cluster.block_rank()), rows = of.segment_groups();
  const int64_t i = blockIdx.x / kCluster, h = blockIdx.y;
  const int first_group = of.first_group + static_cast<int>(i) * rows;
  const int64_t start = of.start_of(first_group);
  const int past = static_cast<int>(start / of.block);
  const int n = static_cast<int>((start + of.segment) / of.block);
  const int n_each = (n + 2 * kCluster - 1) / (2 * kCluster);  // pairs of blocks
  const int begin = min(rank * n_each, (n + 1) / 2), end = min(begin + n_each, (n + 1) / 2);
  extern __shared__ __align__(16) float2 kept[];  // [rows, n_each]
  float* const sums = reinterpret_cast<float*>(kept + (p.keeps ? rows * n_each : 0));  // [rows]
  float* const weight = sums + rows;                                                   // [rows]
  __shared__ float parts[32], totals[2];

  for (int g = thread / 32; g < rows; g += kThreads / 32) {
    const Group group(of, h, first_group + g);
    float sum = 0;
#pragma unroll 2
    for (int b = begin + lane; b < end; b += 32) {
      float2 e = group.exponentials(of, h, b, past);
      if (2 * b + 1 >= n) e.y = 0;
      sum += e.x + e.y;
      if (p.keeps) kept[g * n_each + b - begin] = e;
    }
    sum = warp_reduce(sum, Sum{});
    if (lane == 0) sums[g] = sum;
  }
  cluster.sync();
  for (int g = thread; g < rows; g += kThreads) {
    float sum = 0;
    for (int other = 0; other < kCluster; ++other) sum += cluster.map_shared_rank(sums, other)[g];
    weight[g] = 1 / (static_cast<float>(rows) * sum);
  }
  __syncthreads();
  float* const mass = p.mass.data + (h * p.mass.dims[1] + p.mass_row + i) * p.mass.dims[2];
  float own = 0, entropy = 0;
  for (int b = begin + thread; b < end; b += kThreads) {
    float both[2] = {};
#pragma unroll 4
    for (int g = 0; g < rows; ++g) {
      const float2 e = p.keeps ? kept[g * n_each + b - begin]
                               : Group(of, h, first_group + g).exponentials(of, h, b, past);
      both[0] += weight[g] * e.x;
      both[1] += weight[g] * e.y;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float part = both[half];
      if (2 * b + half < past) {
        mass[2 * b + half] = part;
        if (part > 0) entropy -= part * logf(part);
      } else if (2 * b + half < n) {
        own += part;
      }
    }
  }
  own = block_reduce(own, Sum{}, parts);
  entropy = block_reduce(entropy, Sum{}, parts);
  if (thread == 0) totals[0] = own, totals[1] = entropy;
  cluster.sync();
  if (rank == 0 && thread == 0) {
    own = entropy = 0;
    for (int other = 0; other < kCluster; ++other) {
      const float* const from = cluster.map_shared_rank(totals, other);
      own += from[0], entropy += from[1];
    }
    p.own.data[h * p.own.dims[1] + p.mass_row + i] = own;
    if (own > 0) entropy -= own * logf(own);
    p.entropy[i * p.entropy_step + h] = fmaxf(0.0f, entropy);
  }
  cluster.sync();  // nobody leaves while its shared memory is read
}

}  // namespace

void share_sketches(const Sketches& of, const EstimateMass& op, Segments segments, Stream& stream) {
  const int64_t first = op.begin / op.segment + segments.begin;
  Params p = {.of = of,
              .mass = op.mass,
              .mass_row = segments.begin,
              .own = op.own,
              .entropy = op.entropy[first][op.layer].data,
              .entropy_step = op.entropy.dim(1) * op.entropy.dim(2),
              .keeps = true};
  const auto rows = static_cast<size_t>(of.segment_groups());
  const auto n_blocks = static_cast<size_t>((first + segments.count) * op.segment / op.block);
  const size_t kept = rows * ((n_blocks + 2 * kCluster - 1) / (2 * kCluster)) * sizeof(float2);
  p.keeps = kept <= kMostKept;
  launch("EstimateMass", share,
         dim3(static_cast<unsigned>(segments.count) * kCluster,
              static_cast<unsigned>(op.kv.n_kv_heads())),
         kThreads, (p.keeps ? kept : 0) + 2 * rows * sizeof(float), stream, p);
}

}  // namespace ei::cuda
