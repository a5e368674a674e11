#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/top.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

// A block per (segment, KV head).
__global__ void __launch_bounds__(kTopThreads, 1) select(const __grid_constant__ SelectBlocks op) {
  __shared__ TopScratch<uint32_t> scratch;
  __shared__ float parts[32];
  const int64_t i = blockIdx.x, h = blockIdx.y, n_segments = op.blocks.dims[1];
  const int64_t slot = h * n_segments + i;
  const int past = static_cast<int>((op.first_segment + i) * op.segment / op.block);
  const int count = op.blocks.data[slot];
  if (threadIdx.x == 0) op.out.count.data[slot] = count;
  if (count <= 0) return;
  const float* score = op.score.data + (h * op.score.dims[1] + i) * op.score.dims[2];

  float top = 0, sum = 1;
  if (op.rank == Rank::kProbability) {
    top = -INFINITY;
    for (int b = static_cast<int>(threadIdx.x); b < past; b += kTopThreads)
      top = fmaxf(top, score[b]);
    top = block_reduce(top, Max{}, parts);
    sum = 0;
    for (int b = static_cast<int>(threadIdx.x); b < past; b += kTopThreads)
      sum += expf(score[b] - top);
    sum = block_reduce(sum, Sum{}, parts);
  }
  const auto key = [&](int b) {
    if (b < op.sink_blocks || b >= past - op.recent_blocks) return UINT32_MAX;
    const float value = __ldg(&score[b]);  // not ordered with what is written: several at a time
    return ordered(op.rank == Rank::kProbability ? expf(value - top) / sum : value);
  };
  write_top(key, past, count, op.out.index.data + slot * op.out.index.dims[2], scratch);
}

}  // namespace

void CudaBackend::run(const SelectBlocks& op) {
  check(op);
  const dim3 grid(static_cast<unsigned>(op.blocks.dim(1)), static_cast<unsigned>(op.blocks.dim(0)));
  launch("SelectBlocks", select, grid, kTopThreads, 0, stream_, op);
}

}  // namespace ei::cuda
