#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

__device__ float swiglu(float gate, float up) { return gate / (1 + expf(-gate)) * up; }

// Eight numbers a thread; the last thread takes the rest one by one.
__global__ void swiglu(const bf16* gate, const bf16* up, bf16* out, int64_t n) {
  const int64_t i = 8 * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  if (i + 8 <= n) {
    const Bf16x8 g = *reinterpret_cast<const Bf16x8*>(gate + i);
    const Bf16x8 u = *reinterpret_cast<const Bf16x8*>(up + i);
    float y[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) y[e] = swiglu(g[e], u[e]);
    *reinterpret_cast<Bf16x8*>(out + i) = pack_bf16(y);
  } else {
    for (int64_t j = i; j < n; ++j)
      out[j] = __float2bfloat16_rn(swiglu(to_float(gate[j]), to_float(up[j])));
  }
}

}  // namespace

void CudaBackend::run(const SwiGlu& op) {
  check(op);
  const int64_t n = op.out.rows * op.out.cols;
  void (*kernel)(const bf16*, const bf16*, bf16*, int64_t) = swiglu;
  launch("SwiGlu", kernel, blocks_for(n, 8 * 256), 256, 0, stream_,
         static_cast<const bf16*>(op.gate.data), static_cast<const bf16*>(op.up.data),
         static_cast<bf16*>(op.out.data), n);
}

}  // namespace ei::cuda
