// A reduced case of what racecheck of compute-sanitizer (CUDA 13.0) reports of prefill attention: a
// ring of slots in shared memory, handed by mbarriers from one warp to eight others and back. A
// slot is written only after all its readers have arrived at its barrier, and every item arrives
// whole; racecheck reports a hazard between the reads and the next write all the same.
#include <cstdio>

#include "ei/cuda/device/ptx.cuh"

namespace ei::cuda {
namespace {

constexpr int kReaders = 8, kItems = 2000;

__global__ void hand_over(int* n_wrong) {
  __shared__ uint64_t full[2], empty[2];
  __shared__ int4 slot[2];
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(&full[i], 1), mbarrier_init(&empty[i], kReaders);
    fence_barrier_init();
  }
  __syncthreads();
  for (int i = 0; i < kItems; ++i) {
    const auto phase = static_cast<uint32_t>(i / 2 % 2);
    if (warp == 0) {
      mbarrier_wait(&empty[i % 2], phase ^ 1);
      if (lane == 0) {
        slot[i % 2] = make_int4(i, i + 1, i + 2, i + 3);
        mbarrier_arrive(&full[i % 2]);
      }
      __syncwarp();
    } else {
      mbarrier_wait(&full[i % 2], phase);
      const int4 item = slot[i % 2];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&empty[i % 2]);
      if (item.x != i || item.w != i + 3) atomicAdd(n_wrong, 1);
    }
  }
}

}  // namespace
}  // namespace ei::cuda

int main() {
  int* n_wrong = nullptr;
  cudaMallocManaged(&n_wrong, sizeof(int));
  *n_wrong = 0;
  ei::cuda::hand_over<<<4, 32 * (1 + ei::cuda::kReaders)>>>(n_wrong);
  const cudaError_t code = cudaDeviceSynchronize();
  std::printf("%s, %d wrong\n", cudaGetErrorString(code), *n_wrong);
  return code == cudaSuccess && *n_wrong == 0 ? 0 : 1;
}
