#pragma once

#include <cstdint>

#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/ptx.cuh"

// Products of small tiles by one warp, operands in shared memory as rows of bf16. A row holds k
// numbers, k a multiple of 16 (padded with zeros), and 8 more that keep the banks apart.
namespace ei::cuda {

__host__ __device__ inline int padded_depth(int k) { return (k + 15) / 16 * 16; }
__host__ __device__ inline int row_stride(int k) { return padded_depth(k) + 8; }

// acc += a b^T; a: 16 rows, b: kColumns rows. Of acc[t], thread l holds rows l / 4 and l / 4 + 8,
// columns 8 t + 2 (l % 4) and the next.
template <int kColumns>
__device__ void multiply_tile(float (&acc)[kColumns / 8][4], const bf16* a, const bf16* b,
                              int depth, int stride) {
  const int lane = static_cast<int>(threadIdx.x % 32), matrix = lane / 8, row = lane % 8;
  const bf16* a_row = a + (matrix % 2 * 8 + row) * stride + matrix / 2 * 8;
  const bf16* b_row = b + (matrix / 2 * 8 + row) * stride + matrix % 2 * 8;
  for (int k = 0; k < depth; k += 16) {
    uint32_t ra[4];
    ldmatrix_x4(ra, a_row + k);
#pragma unroll
    for (int t = 0; t < kColumns / 8; t += 2) {
      uint32_t rb[4];
      ldmatrix_x4(rb, b_row + t * 8 * stride + k);
      mma_16816(acc[t], ra, rb[0], rb[1]);
      mma_16816(acc[t + 1], ra, rb[2], rb[3]);
    }
  }
}

// x as the sum of two bf16: 16 bits of it.
__device__ inline void split(float x, bf16& high, bf16& low) {
  high = __float2bfloat16_rn(x);
  low = __float2bfloat16_rn(x - to_float(high));
}

}  // namespace ei::cuda
