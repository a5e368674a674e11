#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/top.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kBlocks = 8;

// A cluster of thread blocks per head.
__global__ void __cluster_dims__(kBlocks) __launch_bounds__(kTopThreads, 1)
    keep(const __grid_constant__ KeepTop op) {
  __shared__ TopScratch<uint32_t> scratch;
  const int64_t h = blockIdx.x / kBlocks;
  const int n = op.n_votes.data[h];
  const int n_top = static_cast<int>(min(op.n_top, int64_t{n}));
  const float* votes = op.votes.data + h * op.votes.dims[1];
  int32_t* rows = op.out.rows.data + h * op.out.rows.dims[1];
  // What is not ordered with what is written is read several at a time.
  write_top<kBlocks>([&](int i) { return ordered(__ldg(&votes[i])); }, n, n_top, rows, scratch);
  if (blockIdx.x % kBlocks != 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < op.window; i += kTopThreads)
    rows[n_top + i] = n + i;
  if (threadIdx.x == 0) op.out.count.data[h] = n_top + static_cast<int>(op.window);
}

}  // namespace

void CudaBackend::run(const KeepTop& op) {
  check(op);
  launch("KeepTop", keep, static_cast<unsigned>(op.votes.dim(0)) * kBlocks, kTopThreads, 0, stream_,
         op);
}

}  // namespace ei::cuda
