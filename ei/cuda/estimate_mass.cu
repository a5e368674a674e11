#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/shares.h"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;

struct Params {
  Exponentials of;
  int64_t first_segment;  // of the text
  int64_t segment, block;
  View<float, 3> mass;  // of these segments on
  int64_t mass_row;     // of the first of them
  View<float, 2> own;
  float* entropy;  // [n_kv_heads] of the first segment
  int64_t entropy_step;
};

// A block of threads for a segment and KV head: blockIdx. Which thread adds what goes by blocks'
// numbers alone, so that chunks change nothing.
__global__ void __launch_bounds__(kThreads, 4) share(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) float weight[];  // [rows], read in fours
  __shared__ float parts[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t i = blockIdx.x, h = blockIdx.y, begin = (p.first_segment + i) * p.segment;
  const int past = static_cast<int>(begin / p.block);
  const int n = static_cast<int>((begin + p.segment) / p.block);
  const int rows = static_cast<int>(p.of.rows);
  const int64_t first_row = (h * gridDim.x + i) * p.of.rows;
  const float* e = p.of.e + first_row * p.of.stride;
  const auto n_parts = static_cast<int>((n - 1) / p.of.part_blocks) + 1;
  for (int r = thread; r < rows; r += kThreads) {
    float sum = 0;
    for (int part = 0; part < n_parts; ++part)
      sum += p.of.sums[(first_row + r) * p.of.parts + part];
    weight[r] = sum;
  }
  __syncthreads();
  if (p.of.together) {
    float sum = 0;
    for (int r = thread; r < rows; r += kThreads) sum += weight[r];
    sum = block_reduce(sum, Sum{}, parts);
    for (int r = thread; r < rows; r += kThreads) weight[r] = 1 / sum;
  } else {
    for (int r = thread; r < rows; r += kThreads)
      weight[r] = 1 / (static_cast<float>(rows) * weight[r]);
  }
  __syncthreads();
  float* mass = p.mass.data + (h * p.mass.dims[1] + p.mass_row + i) * p.mass.dims[2];
  float own = 0, entropy = 0;
  for (int b = thread; b < n; b += kThreads) {
    float part = 0;
#pragma unroll 8
    for (int r = 0; r < rows; ++r) part += weight[r] * e[r * p.of.stride + b];
    if (b < past) {
      mass[b] = part;
      if (part > 0) entropy -= part * logf(part);
    } else {
      own += part;
    }
  }
  own = block_reduce(own, Sum{}, parts);
  entropy = block_reduce(entropy, Sum{}, parts);
  if (thread != 0) return;
  p.own.data[h * p.own.dims[1] + p.mass_row + i] = own;
  if (own > 0) entropy -= own * logf(own);
  p.entropy[i * p.entropy_step + h] = fmaxf(0.0f, entropy);
}

// Entropies of segments that attend to everything; blockIdx.
__global__ void clear(float* entropy, int64_t step, int64_t n_heads) {
  for (int64_t h = threadIdx.x; h < n_heads; h += blockDim.x) entropy[blockIdx.x * step + h] = 0;
}

}  // namespace

void share_out(const EstimateMass& op, Segments segments, const Exponentials& of, Stream& stream) {
  const int64_t first = op.begin / op.segment + segments.begin;
  const Params p = {.of = of,
                    .first_segment = first,
                    .segment = op.segment,
                    .block = op.block,
                    .mass = op.mass,
                    .mass_row = segments.begin,
                    .own = op.own,
                    .entropy = op.entropy[first][op.layer].data,
                    .entropy_step = op.entropy.dim(1) * op.entropy.dim(2)};
  const dim3 grid(static_cast<unsigned>(segments.count), static_cast<unsigned>(op.kv.n_kv_heads()));
  launch("EstimateMass", share, grid, kThreads,
         sizeof(float) * static_cast<size_t>((of.rows + 3) / 4 * 4), stream, p);
}

void CudaBackend::run(const EstimateMass& op) {
  check(op);
  const int64_t first = op.begin / op.segment, kv_heads = op.kv.n_kv_heads();
  const int64_t n_segments = (op.q.rows + op.segment - 1) / op.segment;
  const int64_t from = std::clamp<int64_t>(op.dense_before - first, 0, n_segments);
  const int64_t to = std::clamp<int64_t>(op.dense_from - first, from, n_segments);
  for (const auto& [begin, end] : {std::pair{int64_t{0}, from}, {to, n_segments}})
    if (begin < end)
      launch("EstimateMass", clear, static_cast<unsigned>(end - begin), 32, 0, stream_,
             op.entropy[first + begin][op.layer].data, op.entropy.dim(1) * op.entropy.dim(2),
             kv_heads);
  if (from == to) return;
  EstimateMass wide = op;
  if (op.kv.layout.dtype == DType::kFP8)
    wide.kv = widened(op.kv, op.begin + op.q.rows, /*with_values=*/false);
  if (op.estimate == Estimate::kSketch) {
    estimate_by_sketch(wide, {from, to - from});
  } else {
    estimate_by_logits(wide, {from, to - from});
  }
}

}  // namespace ei::cuda
