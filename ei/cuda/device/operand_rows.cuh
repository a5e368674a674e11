#pragma once

#include <cstdint>

#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/numbers.cuh"

// Rows of numbers in shared memory as operands of mma_tile.cuh: each as the sum of kParts bf16,
// 8 bits apiece, part p in a matrix of its own behind that of part p - 1.
namespace ei::cuda {

template <int kParts, int kWidth, class T>
__device__ void load_operands_by(const T* const* rows, int n_rows, int d, bf16* to) {
  constexpr int kBatch = 4;  // a thread has so many under way
  const int stride = row_stride(d), per_row = padded_depth(d) / kWidth, n = n_rows * per_row;
  const int step = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < n; first += kBatch * step) {
    Numbers<kWidth> numbers[kBatch];
    int at[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = first + b * step, row = i / per_row, c = i % per_row * kWidth;
      const T* from = i < n ? rows[row] : nullptr;
      numbers[b] =
          from != nullptr && c < d ? Numbers<kWidth>::load_fixed(from + c) : Numbers<kWidth>{};
      at[b] = row * stride + c;
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (first + b * step >= n) break;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        numbers[b].store(to + part * n_rows * stride + at[b]);
#pragma unroll
        for (float& x : numbers[b].x) x -= to_float(__float2bfloat16_rn(x));
      }
    }
  }
}

// row_at(i): d numbers that the kernel does not write, or null for zeros; `rows` is shared memory
// for n_rows of them, so that each is looked up once. By all threads of the block.
template <int kParts, class T, class RowAt>
__device__ void load_operands(RowAt row_at, int n_rows, int d, bf16* to, const T** rows) {
  for (int i = static_cast<int>(threadIdx.x); i < n_rows; i += static_cast<int>(blockDim.x))
    rows[i] = row_at(i);
  __syncthreads();
  if (d % 8 == 0) {
    load_operands_by<kParts, 8>(rows, n_rows, d, to);
  } else {
    load_operands_by<kParts, 1>(rows, n_rows, d, to);
  }
}

}  // namespace ei::cuda
