#pragma once

#include <cstdint>

#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/numbers.cuh"

// Rows of numbers in shared memory as operands of mma_tile.cuh: each as the sum of kParts bf16,
// 8 bits apiece, part p in a matrix of its own behind that of part p - 1.
namespace ei::cuda {

template <int kParts, int kWidth, class T, class RowAt>
__device__ void load_operands_by(RowAt row_at, int n_rows, int d, bf16* to) {
  const int stride = row_stride(d), per_row = padded_depth(d) / kWidth;
  for (int i = static_cast<int>(threadIdx.x); i < n_rows * per_row;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / per_row, c = i % per_row * kWidth;
    const T* from = row_at(row);
    Numbers<kWidth> rest{};
    if (from != nullptr && c < d) rest = Numbers<kWidth>::load_fixed(from + c);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      rest.store(to + (part * n_rows + row) * stride + c);
#pragma unroll
      for (float& x : rest.x) x -= to_float(__float2bfloat16_rn(x));
    }
  }
}

// row_at(i): const T*, d numbers that the kernel does not write, or null for zeros. By all threads
// of the block.
template <int kParts, class T, class RowAt>
__device__ void load_operands(RowAt row_at, int n_rows, int d, bf16* to) {
  if (d % 8 == 0) {
    load_operands_by<kParts, 8, T>(row_at, n_rows, d, to);
  } else {
    load_operands_by<kParts, 1, T>(row_at, n_rows, d, to);
  }
}

}  // namespace ei::cuda
