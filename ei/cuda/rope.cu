#include <algorithm>

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

// Pairs (2j, 2j + 1); a block a row.
__global__ void rope_interleaved(bf16* x, const float* cos, const float* sin, int pairs_of_row,
                                 int half) {
  const int64_t row = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < pairs_of_row; i += blockDim.x) {
    bf16* at = x + (row * pairs_of_row + i) * 2;
    const float c = cos[row * half + i % half], s = sin[row * half + i % half];
    const float a = __bfloat162float(at[0]), b = __bfloat162float(at[1]);
    at[0] = __float2bfloat16_rn(a * c - b * s);
    at[1] = __float2bfloat16_rn(b * c + a * s);
  }
}

// Pairs (j, j + d/2); a block a row. kWidth neighbouring pairs a thread.
template <int kWidth>
__global__ void rope(bf16* x, const float* cos, const float* sin, int pairs_of_row, int half) {
  const int64_t row = blockIdx.x;
  const int of_head = half / kWidth;
  for (int i = static_cast<int>(threadIdx.x); i < pairs_of_row / kWidth; i += blockDim.x) {
    const int head = i / of_head, j = i % of_head * kWidth;
    bf16* at = x + row * 2 * pairs_of_row + head * 2 * half + j;
    auto low = Numbers<kWidth>::load(at), high = Numbers<kWidth>::load(at + half);
    const auto cosines = Numbers<kWidth>::load(cos + row * half + j);
    const auto sines = Numbers<kWidth>::load(sin + row * half + j);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float c = cosines.x[e], s = sines.x[e];
      const float a = low.x[e], b = high.x[e];
      low.x[e] = a * c - b * s;
      high.x[e] = b * c + a * s;
    }
    low.store(at);
    high.store(at + half);
  }
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
  const auto pairs = static_cast<int>(op.x.cols / 2), half = static_cast<int>(op.cos.dim(1));
  const int width = half % 8 == 0 && !op.interleaved ? 8 : 1;
  const unsigned threads = std::min(256u, blocks_for(pairs / width, 32) * 32);
  launch("Rope",
         op.interleaved ? rope_interleaved
         : width == 8   ? rope<8>
                        : rope<1>,
         static_cast<unsigned>(op.x.rows), threads, 0, stream_, static_cast<bf16*>(op.x.data),
         op.cos.data, op.sin.data, pairs, half);
}

}  // namespace ei::cuda
