#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"

// Rows in e4m3, each with a scale that makes its largest number 448.
namespace ei::cuda {

__device__ inline uint32_t four_e4m3(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2({a, b}, __NV_SATFINITE, __NV_E4M3);
  return low | uint32_t{__nv_cvt_float2_to_fp8x2({c, d}, __NV_SATFINITE, __NV_E4M3)} << 16;
}

__device__ inline uint32_t four_s8(float a, float b, float c, float d) {
  const auto byte = [](float x) {
    return static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(x, -127.0f), 127.0f)) & 255);
  };
  return byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
}

struct E4m3Row {
  uint2* out;  // in vectors of 8
  float* scale;
};

// Of a row, what a thread of its block holds: vector_of(i) for the vectors i = thread,
// thread + n_threads, ... of 8 bf16 each, zeros beyond the row.
template <int kHeld, class F>
__device__ void hold_row(uint4 (&held)[kHeld], int n_vectors, F vector_of) {
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const auto i = static_cast<int>(threadIdx.x + j * blockDim.x);
    held[j] = i < n_vectors ? vector_of(i) : uint4{};
  }
}

// Rounds a row that the threads of a block hold so. `parts` is shared memory of 32.
template <int kHeld>
__device__ void round_row(const uint4 (&held)[kHeld], int n_vectors, const E4m3Row& row,
                          float* parts) {
  const int thread = static_cast<int>(threadIdx.x), n_threads = static_cast<int>(blockDim.x);
  float top = 0;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const auto v = Numbers<8>::of(held[j]);
#pragma unroll
    for (int e = 0; e < 8; ++e) top = fmaxf(top, fabsf(v.x[e]));
  }
  top = block_reduce(top, Max{}, parts);
  const float inverse = top > 0 ? fminf(448 / top, 3e38f) : 0;  // finite: 0 stays 0
  if (thread == 0) *row.scale = top / 448;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * n_threads;
    if (i >= n_vectors) break;
    const auto v = Numbers<8>::of(held[j]);
    const auto four = [&](int e) {
      return four_e4m3(v.x[e] * inverse, v.x[e + 1] * inverse, v.x[e + 2] * inverse,
                       v.x[e + 3] * inverse);
    };
    row.out[i] = {four(0), four(4)};
  }
}

}  // namespace ei::cuda
