#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kHeld = 4;  // vectors of a row that a thread keeps in registers

// blockDim.x threads a row, blockDim.y rows a block: rows of one head take a warp each, rows of the
// residual stream a block. What kHeld vectors a thread do not hold is read twice.
__global__ void rms_norm(const bf16* x, const float* weight, float eps, bf16* out, int64_t n,
                         int width) {
  __shared__ float parts[32];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= n) return;  // whole warps; with one row a block there is none
  const bf16* from = x + row * width;
  bf16* to = out + row * width;
  const int n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int n_vectors = width % 8 == 0 ? width / 8 : 0, held_end = kHeld * n_threads;

  float sum = 0;
  const auto add = [&](const Numbers<8>& v) {
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += v.x[e] * v.x[e];
  };
  uint4 held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * n_threads;
    held[j] = i < n_vectors ? reinterpret_cast<const uint4*>(from)[i] : uint4{};
  }
#pragma unroll
  for (int j = 0; j < kHeld; ++j) add(Numbers<8>::of(held[j]));
  for (int i = thread + held_end; i < n_vectors; i += n_threads)
    add(Numbers<8>::load(from + 8 * i));
  for (int i = n_vectors * 8 + thread; i < width; i += n_threads)
    sum += to_float(from[i]) * to_float(from[i]);
  sum = blockDim.y > 1 ? warp_reduce(sum, Sum{}) : block_reduce(sum, Sum{}, parts);

  const float factor = rsqrtf(sum / static_cast<float>(width) + eps);
  const auto write = [&](Numbers<8> v, int i) {
    const auto w = Numbers<8>::load(weight + 8 * i);
#pragma unroll
    for (int e = 0; e < 8; ++e) v.x[e] *= factor * w.x[e];
    v.store(to + 8 * i);
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * n_threads;
    if (i < n_vectors) write(Numbers<8>::of(held[j]), i);
  }
  for (int i = thread + held_end; i < n_vectors; i += n_threads)
    write(Numbers<8>::load(from + 8 * i), i);
  for (int i = n_vectors * 8 + thread; i < width; i += n_threads)
    to[i] = __float2bfloat16_rn(to_float(from[i]) * factor * weight[i]);
}

}  // namespace

void CudaBackend::run(const RmsNorm& op) {
  check(op);
  const int64_t n = op.x.rows;
  // A prompt's rows fill the GPU whatever their blocks, so that threads hold much; few rows do not.
  const unsigned held = n >= n_sms_ ? kHeld : 1;
  const unsigned warps = std::min(16u, blocks_for(op.x.cols, held * 8 * 32));  // of a row
  const dim3 block = warps == 1 ? dim3(32, 8) : dim3(32 * warps, 1);
  launch("RmsNorm", rms_norm, blocks_for(n, block.y), block, 0, stream_,
         static_cast<const bf16*>(op.x.data), op.weight.data, op.eps,
         static_cast<bf16*>(op.out.data), n, static_cast<int>(op.x.cols));
}

}  // namespace ei::cuda
