#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/ops/weight_blocks.h"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(1024)
    quantize(const bf16* from, uint8_t* to, float* scale, int cols) {
  __shared__ float parts[32];
  const int64_t begin = int64_t{blockIdx.x} * cols;
  const int n_vectors = cols / 8;
  uint4 held[kRoundHeld];
  hold_row(held, n_vectors, [&](int i) { return reinterpret_cast<const uint4*>(from + begin)[i]; });
  round_row(held, n_vectors, {reinterpret_cast<uint2*>(to + begin), scale + blockIdx.x}, parts);
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
  const float inverse = top > 0 ? fminf(448 / top, 3e38f) : 0;  // finite: 0 stays 0
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
  launch("quantize", quantize, static_cast<unsigned>(n), threads_that_round(cols), 0, stream,
         static_cast<const bf16*>(from), static_cast<uint8_t*>(to), scale, static_cast<int>(cols));
}

void merge_scales(const void* blocks, int64_t n, int64_t cols, void* to, float* scale,
                  Stream& stream) {
  launch("quantize", merge, static_cast<unsigned>(n), kThreads, 0, stream,
         static_cast<const uint8_t*>(blocks), static_cast<uint8_t*>(to), scale,
         static_cast<int>(cols / 32));
}

}  // namespace ei::cuda
