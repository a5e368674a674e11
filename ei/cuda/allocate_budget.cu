#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;  // entropies held in shared memory at a time

__device__ int32_t blocks_of(const AllocateBudget& op, int64_t s, float tokens) {
  if (s < op.dense_before || s >= op.dense_from) return kAllBlocks;
  return static_cast<int32_t>(
      min(static_cast<int64_t>(tokens) / op.block, s * op.segment / op.block));
}

// A block per KV head. All its threads find how far each segment's entropy moves the budget; adding
// that up within bounds is one thread's, a few hundred short steps.
__global__ void step_budgets(const __grid_constant__ AllocateBudget op) {
  __shared__ float entropy[kTile], budget[kTile], parts[32];
  const int64_t h = blockIdx.x, n = op.blocks.dims[1];
  const int64_t end = op.first_segment + n;
  // Entropy of segment s: from[s * stride].
  const float* from = op.entropy.data + op.layer * op.entropy.dims[2] + h;
  const int64_t stride = op.entropy.dims[1] * op.entropy.dims[2];

  float most = -INFINITY;  // to tell whether the whole prompt is rigid
  if (op.rule.rigid_whole_prompt) {
    for (int64_t s = 1 + threadIdx.x; s < end; s += kThreads) most = fmaxf(most, from[s * stride]);
    most = block_reduce(most, Max{}, parts);
  }
  const bool rigid = most < op.rule.e_t;

  BudgetRecurrence recurrence(op.rule);
  for (int64_t begin = 0; begin < end; begin += kTile) {
    const int64_t count = min(int64_t{kTile}, end - begin);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const int64_t s = begin + i;
      entropy[i] = from[s * stride];
      budget[i] = s > 1 ? budget_change(op.rule, from[(s - 1) * stride], entropy[i]) : 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      if (begin == 0) budget[0] = op.rule.base;
#pragma unroll 8
      for (int i = begin == 0 ? 1 : 0; i < static_cast<int>(count); ++i)
        budget[i] = recurrence.step_by(budget[i], entropy[i], rigid);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const int64_t s = begin + i;
      if (s < op.first_segment) continue;
      op.tokens.data[h * n + s - op.first_segment] = budget[i];
      op.blocks.data[h * n + s - op.first_segment] = blocks_of(op, s, budget[i]);
    }
  }
}

// The largest budget of a segment for all heads; a thread per segment.
__global__ void share_largest(const __grid_constant__ AllocateBudget op) {
  const int64_t heads = op.blocks.dims[0], n = op.blocks.dims[1];
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float most = 0;
  for (int64_t h = 0; h < heads; ++h) most = fmaxf(most, op.tokens.data[h * n + i]);
  for (int64_t h = 0; h < heads; ++h) {
    op.tokens.data[h * n + i] = most;
    op.blocks.data[h * n + i] = blocks_of(op, op.first_segment + i, most);
  }
}

}  // namespace

void CudaBackend::run(const AllocateBudget& op) {
  check(op);
  if (op.blocks.size() == 0) return;
  launch("AllocateBudget", step_budgets, static_cast<unsigned>(op.blocks.dim(0)), kThreads, 0,
         stream_, op);
  if (op.rule.max_over_heads)
    launch("AllocateBudget", share_largest, blocks_for(op.blocks.dim(1), 64), 64, 0, stream_, op);
}

}  // namespace ei::cuda
