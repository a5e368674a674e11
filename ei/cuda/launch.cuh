#pragma once

#include <cuda_runtime.h>

#include <array>
#include <tuple>
#include <utility>

#include "ei/cuda/error.h"
#include "ei/cuda/stream.h"

namespace ei::cuda {

// Starts a kernel; a grid without blocks is nothing to do. Launch errors throw under the kernel's
// name. With EI_CUDA_SYNC (preset cuda-debug) waits for it, so that errors appear where they arise.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            Stream& stream, Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto* function = reinterpret_cast<const void*>(kernel);
  // Up to 48 KiB need no leave, but what the kernel declares itself counts as well.
  if (shared_bytes > 32 * 1024) {
    stream.use_device();
    check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  std::tuple<std::remove_cv_t<Params>...> params(std::forward<Args>(args)...);
  constexpr std::array<size_t, sizeof...(Params)> sizes = {sizeof(Params)...};
  const std::array<void*, sizeof...(Params)> pointers = std::apply(
      [](auto&... param) { return std::array<void*, sizeof...(Params)>{&param...}; }, params);
  stream.launch({name, function, grid, block, shared_bytes}, pointers, sizes);
}

inline unsigned blocks_for(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

}  // namespace ei::cuda
