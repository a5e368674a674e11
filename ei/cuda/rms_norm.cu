#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

// A row is read twice, the second time from cache. One block of x threads a row, y rows a block:
// rows of one head take a warp each, rows of the residual stream a block.
__global__ void rms_norm(const bf16* x, const float* weight, float eps, bf16* out, int64_t n,
                         int width) {
  __shared__ float parts[32];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= n) return;  // whole warps; with one row a block there is none
  const bf16* from = x + row * width;
  bf16* to = out + row * width;
  const int n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const bool in_eights = width % 8 == 0;
  const int n_eights = in_eights ? width / 8 : 0;

  float sum = 0;
  for (int i = thread; i < n_eights; i += n_threads) {
    const Bf16x8 v = reinterpret_cast<const Bf16x8*>(from)[i];
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += v[e] * v[e];
  }
  for (int i = n_eights * 8 + thread; i < width; i += n_threads)
    sum += to_float(from[i]) * to_float(from[i]);
  sum = blockDim.y > 1 ? warp_reduce(sum, Sum{}) : block_reduce(sum, Sum{}, parts);

  const float factor = rsqrtf(sum / static_cast<float>(width) + eps);
  for (int i = thread; i < n_eights; i += n_threads) {
    const Bf16x8 v = reinterpret_cast<const Bf16x8*>(from)[i];
    float y[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) y[e] = v[e] * factor * weight[8 * i + e];
    reinterpret_cast<Bf16x8*>(to)[i] = pack_bf16(y);
  }
  for (int i = n_eights * 8 + thread; i < width; i += n_threads)
    to[i] = __float2bfloat16_rn(to_float(from[i]) * factor * weight[i]);
}

}  // namespace

void CudaBackend::run(const RmsNorm& op) {
  check(op);
  const int64_t n = op.x.rows;
  const bool is_short = op.x.cols <= 256;
  const dim3 block = is_short ? dim3(32, 8) : dim3(512, 1);
  launch("RmsNorm", rms_norm, blocks_for(n, block.y), block, 0, stream_,
         static_cast<const bf16*>(op.x.data), op.weight.data, op.eps,
         static_cast<bf16*>(op.out.data), n, static_cast<int>(op.x.cols));
}

}  // namespace ei::cuda
