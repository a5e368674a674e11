#include <cuda_fp16.h>

#include "ei/base/error.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

// Converted in pieces of this size, so that no second copy of a large matrix is held.
constexpr int64_t kPieceBytes = int64_t{64} << 20;

template <class T>
__global__ void narrow(const T* from, bf16* to, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) to[i] = __float2bfloat16_rn(static_cast<float>(from[i]));
}

}  // namespace

// f32 and f16 weights are rounded to bf16. The copy is freed with memory_.
Weight CudaBackend::place(const Weight& host) {
  if (is_quantized(host.format))
    throw Error("weights in " + std::string(block_of(host.format).name) +
                " are not computed with on CUDA, which takes BF16, F16 and F32: convert them "
                "(--weights bf16) or run on the CPU (--device cpu)");
  Weight placed = host;
  placed.format = WeightFormat::kBF16;
  void* data = memory_.allocate(placed.bytes());
  placed.data = data;
  if (host.format == WeightFormat::kBF16) {
    copy_in(data, host.data, host.bytes());
  } else {
    const int64_t n = host.rows * host.cols, bytes = row_bytes(host.format, 1);
    const int64_t step = kPieceBytes / bytes;
    for (int64_t i = 0; i < n; i += step) {
      const int64_t count = std::min(step, n - i);
      void* piece = scratch(kPieceBytes);
      copy_in(piece, static_cast<const char*>(host.data) + i * bytes, count * bytes);
      bf16* to = static_cast<bf16*>(data) + i;
      if (host.format == WeightFormat::kF32) {
        launch("place", narrow<float>, blocks_for(count, 256), 256, 0, stream_,
               static_cast<const float*>(piece), to, count);
      } else {
        launch("place", narrow<__half>, blocks_for(count, 256), 256, 0, stream_,
               static_cast<const __half*>(piece), to, count);
      }
    }
  }
  return placed;
}

}  // namespace ei::cuda
