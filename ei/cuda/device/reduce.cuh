#pragma once

#include <cstdint>

// Reductions over a warp and over a thread block.
namespace ei::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <class T, class Op>
__device__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    value = op(value, __shfl_xor_sync(kFullWarp, value, step));
  return value;
}

// The result is in every thread. `scratch` is shared memory of 32 elements; the block must be whole
// warps. May be called again at once with the same scratch.
template <class T, class Op>
__device__ T block_reduce(T value, Op op, T* scratch) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  value = warp_reduce(value, op);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = scratch[0];
  for (unsigned w = 1; w < n_warps; ++w) value = op(value, scratch[w]);
  __syncthreads();
  return value;
}

// Of `value` over the threads before this one; the sum of all goes to `total`. `scratch` as above.
template <class T>
__device__ T block_exclusive_sum(T value, T* scratch, T& total) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  T sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T left = __shfl_up_sync(kFullWarp, sum, step);
    if (lane >= static_cast<unsigned>(step)) sum += left;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  T before = 0;
  total = 0;
  for (unsigned w = 0; w < n_warps; ++w) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  __syncthreads();
  return before + sum - value;
}

}  // namespace ei::cuda
