#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "ei/cuda/error.h"

namespace ei::cuda {

// Starts a kernel; a grid without blocks is nothing to do. Launch errors throw under the kernel's
// name. With EI_CUDA_SYNC (preset cuda-debug) waits for it, so that errors appear where they arise.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Args>(args)...);
  check_cuda(cudaGetLastError(), name);
#ifdef EI_CUDA_SYNC
  check_cuda(cudaStreamSynchronize(stream), name);
#endif
}

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

}  // namespace ei::cuda
