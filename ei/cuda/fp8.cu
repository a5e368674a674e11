#include <cuda_fp8.h>

#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/ops/weight_blocks.h"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 8;  // vectors of a row that a thread keeps in registers

__device__ uint32_t four_e4m3(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2({a, b}, __NV_SATFINITE, __NV_E4M3);
  return low | uint32_t{__nv_cvt_float2_to_fp8x2({c, d}, __NV_SATFINITE, __NV_E4M3)} << 16;
}

__global__ void __launch_bounds__(kThreads)
    quantize(const bf16* from, uint8_t* to, float* scale, int cols) {
  __shared__ float parts[32];
  const auto* row = reinterpret_cast<const uint4*>(from + int64_t{blockIdx.x} * cols);
  auto* out = reinterpret_cast<uint2*>(to + int64_t{blockIdx.x} * cols);
  const int n_vectors = cols / 8, thread = static_cast<int>(threadIdx.x);
  float top = 0;
  const auto look_at = [&](uint4 vector) {
    const auto v = Numbers<8>::of(vector);
#pragma unroll
    for (int e = 0; e < 8; ++e) top = fmaxf(top, fabsf(v.x[e]));
  };
  uint4 held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * kThreads;
    held[j] = i < n_vectors ? row[i] : uint4{};
  }
#pragma unroll
  for (int j = 0; j < kHeld; ++j) look_at(held[j]);
  for (int i = thread + kHeld * kThreads; i < n_vectors; i += kThreads) look_at(row[i]);
  top = block_reduce(top, Max{}, parts);
  const float inverse = top > 0 ? 448 / top : 0;
  if (thread == 0) scale[blockIdx.x] = top / 448;
  const auto write = [&](uint4 vector, int i) {
    const auto v = Numbers<8>::of(vector);
    const auto four = [&](int e) {
      return four_e4m3(v.x[e] * inverse, v.x[e + 1] * inverse, v.x[e + 2] * inverse,
                       v.x[e + 3] * inverse);
    };
    out[i] = {four(0), four(4)};
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * kThreads;
    if (i < n_vectors) write(held[j], i);
  }
  for (int i = thread + kHeld * kThreads; i < n_vectors; i += kThreads) write(row[i], i);
}

// A thread takes a block of 32.
__global__ void __launch_bounds__(kThreads)
    merge(const uint8_t* from, uint8_t* to, float* scale, int n_blocks) {
  constexpr int kBytes = static_cast<int>(block_of(WeightFormat::kFP8).bytes);
  __shared__ float parts[32];
  const uint8_t* row = from + int64_t{blockIdx.x} * n_blocks * kBytes;
  auto* out = reinterpret_cast<uint32_t*>(to) + int64_t{blockIdx.x} * n_blocks * 8;
  const int thread = static_cast<int>(threadIdx.x);
  const auto scale_of = [&](int block) {
    return *reinterpret_cast<const float*>(row + block * kBytes);
  };
  const auto word_of = [&](int block, int i) {
    return reinterpret_cast<const uint32_t*>(row + block * kBytes + 4)[i];
  };
  const auto values = [&](int block, int i, float(&x)[4]) {
    const uint32_t word = word_of(block, i);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      x[e] = scale_of(block) * __half2float(__nv_cvt_fp8_to_halfraw(
                                   static_cast<__nv_fp8_storage_t>(word >> 8 * e), __NV_E4M3));
  };
  const float first = scale_of(0);
  float top = 0, differ = 0;
  for (int b = thread; b < n_blocks; b += kThreads) {
    if (scale_of(b) != first) differ = 1;
    for (int i = 0; i < 8; ++i) {
      float x[4];
      values(b, i, x);
#pragma unroll
      for (int e = 0; e < 4; ++e) top = fmaxf(top, fabsf(x[e]));
    }
  }
  differ = block_reduce(differ, Max{}, parts);
  top = block_reduce(top, Max{}, parts);
  if (thread == 0) scale[blockIdx.x] = differ > 0 ? top / 448 : first;
  const float inverse = top > 0 ? 448 / top : 0;
  for (int b = thread; b < n_blocks; b += kThreads) {
    for (int i = 0; i < 8; ++i) {
      float x[4];
      values(b, i, x);
      out[8 * b + i] =
          differ > 0 ? four_e4m3(x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse)
                     : word_of(b, i);
    }
  }
}

}  // namespace

void quantize_rows(const void* from, int64_t n, int64_t cols, void* to, float* scale,
                   Stream& stream) {
  launch("quantize", quantize, static_cast<unsigned>(n), kThreads, 0, stream,
         static_cast<const bf16*>(from), static_cast<uint8_t*>(to), scale, static_cast<int>(cols));
}

void merge_scales(const void* blocks, int64_t n, int64_t cols, void* to, float* scale,
                  Stream& stream) {
  launch("quantize", merge, static_cast<unsigned>(n), kThreads, 0, stream,
         static_cast<const uint8_t*>(blocks), static_cast<uint8_t*>(to), scale,
         static_cast<int>(cols / 32));
}

}  // namespace ei::cuda
