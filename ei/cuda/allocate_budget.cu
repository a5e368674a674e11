#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;  // entropies held in shared memory at a time

// A block per KV head. The recurrence is one thread's, a few hundred steps over entropies that the
// block has brought near.
__global__ void step_budgets(const __grid_constant__ AllocateBudget op) {
  __shared__ float entropy[kTile], parts[32];
  const int64_t h = blockIdx.x, stride = op.entropy.dims[1], n = op.blocks.dims[1];
  const int64_t end = op.first_segment + n;
  const float* from = op.entropy.data + h * stride;

  float most = -INFINITY;  // to tell whether the whole prompt is rigid
  if (op.rule.rigid_whole_prompt) {
    for (int64_t s = 1 + threadIdx.x; s < end; s += kThreads) most = fmaxf(most, from[s]);
    most = block_reduce(most, Max{}, parts);
  }
  const bool rigid = most < op.rule.e_t;

  BudgetRecurrence recurrence(op.rule);
  for (int64_t begin = 0; begin < end; begin += kTile) {
    const int64_t count = min(int64_t{kTile}, end - begin);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kThreads) entropy[i] = from[begin + i];
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t s = begin + i;
      const float budget = s == 0 ? op.rule.base : recurrence.step(s, entropy[i], rigid);
      if (s >= op.first_segment) op.tokens.data[h * n + s - op.first_segment] = budget;
    }
  }
}

// From tokens to blocks, a thread per segment.
__global__ void cut_to_blocks(const __grid_constant__ AllocateBudget op) {
  const int64_t heads = op.blocks.dims[0], n = op.blocks.dims[1];
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int64_t s = op.first_segment + i;
  const bool dense = s < op.dense_before || s >= op.dense_from;
  float most = 0;
  for (int64_t h = 0; h < heads; ++h) most = fmaxf(most, op.tokens.data[h * n + i]);
  for (int64_t h = 0; h < heads; ++h) {
    float& tokens = op.tokens.data[h * n + i];
    if (op.rule.max_over_heads) tokens = most;
    const int64_t wanted = static_cast<int64_t>(tokens) / op.block;
    op.blocks.data[h * n + i] =
        dense ? kAllBlocks : static_cast<int32_t>(min(wanted, s * op.segment / op.block));
  }
}

}  // namespace

void CudaBackend::run(const AllocateBudget& op) {
  check(op);
  if (op.blocks.size() == 0) return;
  launch("AllocateBudget", step_budgets, static_cast<unsigned>(op.blocks.dim(0)), kThreads, 0,
         stream_, op);
  launch("AllocateBudget", cut_to_blocks, blocks_for(op.blocks.dim(1), 64), 64, 0, stream_, op);
}

}  // namespace ei::cuda
