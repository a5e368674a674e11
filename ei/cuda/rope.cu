#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

__global__ void rope_angles(const int32_t* positions, const float* inv_freq, float scale,
                            float* cos, float* sin, int64_t n, int half) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n * half) return;
  const float angle = static_cast<float>(positions[i / half]) * inv_freq[i % half];
  cos[i] = scale * cosf(angle);
  sin[i] = scale * sinf(angle);
}

// A thread per pair (j, j + d/2).
__global__ void rope(bf16* x, const float* cos, const float* sin, int64_t n_pairs, int pairs_of_row,
                     int half) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n_pairs) return;
  const int64_t row = i / pairs_of_row;
  const int pair = static_cast<int>(i % pairs_of_row), head = pair / half, j = pair % half;
  bf16* low = x + row * 2 * pairs_of_row + head * 2 * half + j;
  const float c = cos[row * half + j], s = sin[row * half + j];
  const float a = to_float(low[0]), b = to_float(low[half]);
  low[0] = __float2bfloat16_rn(a * c - b * s);
  low[half] = __float2bfloat16_rn(b * c + a * s);
}

}  // namespace

void CudaBackend::run(const RopeAngles& op) {
  check(op);
  const int64_t n = op.positions.dim(0), half = op.inv_freq.dim(0);
  launch("RopeAngles", rope_angles, blocks_for(n * half, 256), 256, 0, stream_, op.positions.data,
         op.inv_freq.data, op.scale, op.cos.data, op.sin.data, n, static_cast<int>(half));
}

void CudaBackend::run(const Rope& op) {
  check(op);
  const int64_t n_pairs = op.x.rows * op.x.cols / 2;
  launch("Rope", rope, blocks_for(n_pairs, 256), 256, 0, stream_, static_cast<bf16*>(op.x.data),
         op.cos.data, op.sin.data, n_pairs, static_cast<int>(op.x.cols / 2),
         static_cast<int>(op.cos.dim(1)));
}

}  // namespace ei::cuda
