#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/weights.cuh"
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

// Few rows of x by weights in e4m3, bound by reading these once: they go from memory to registers,
// kStages steps of 64 columns under way, and from there to the tensor cores as bf16, exactly. The
// warps of a block share out the columns. Which of them are one product's is free as long as x
// agrees: a lane takes 16 that lie together.
constexpr int kWarps = 8, kStages = 4, kStep = 64 * kWarps;

__device__ uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

__global__ void __launch_bounds__(32 * kWarps, 3) multiply(const __grid_constant__ FewRows p) {
  __shared__ float totals[kWarps][kMaxExactRows][kE4m3Outputs];
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int quad = lane / 4, in_quad = lane % 4;
  const int first = (static_cast<int>(blockIdx.x) - p.first_block[which]) * int{kE4m3Outputs};

  const int begin = 64 * warp + 16 * in_quad;
  const uint8_t* rows[2];  // of the weight: a lane's two of 16
#pragma unroll
  for (int r = 0; r < 2; ++r)
    rows[r] = static_cast<const uint8_t*>(part.weight) + int64_t{first + quad + 8 * r} * p.k;
  const bool has_x = quad < p.n;
  const bf16* x = p.x + int64_t{has_x ? quad : 0} * p.k;
  uint4 held[kStages][2];
  const auto fetch = [&](uint4(&to)[2], int column) {
#pragma unroll
    for (int r = 0; r < 2; ++r) to[r] = column < p.k ? load_once_16(rows[r] + column) : uint4{};
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) fetch(held[s], begin + s * kStep);
  float sums[4] = {};
  for (int from = begin; from - 16 * in_quad < p.k; from += kStages * kStep) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      const int column = from + s * kStep;
      Bf16x8 b[2] = {};
      if (has_x && column < p.k) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          b[half] = reinterpret_cast<const Bf16x8*>(x + column)[half];
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint2 low = bf16_pairs<WeightFormat::kFP8>(word_of(held[s][0], j));
        const uint2 high = bf16_pairs<WeightFormat::kFP8>(word_of(held[s][1], j));
        const uint32_t a[4] = {low.x, high.x, low.y, high.y};
        mma_16816(sums, a, b[j / 2].word[j % 2 * 2], b[j / 2].word[j % 2 * 2 + 1]);
      }
      fetch(held[s], column + kStages * kStep);
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) totals[warp][2 * in_quad + e % 2][quad + e / 2 * 8] = sums[e];
  __syncthreads();
  for (int i = thread; i < p.n * kE4m3Outputs; i += 32 * kWarps) {
    const int row = i / kE4m3Outputs, output = i % kE4m3Outputs, at = first + output;
    float y = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) y += totals[w][row][output];
    y = fmaf(y, part.scale[at], part.bias == nullptr ? 0.0f : part.bias[at]);
    part.store(int64_t{row} * part.m + at, y);
  }
}

}  // namespace

void multiply_e4m3(const FewRows& product, Stream& stream) {
  launch("MatMul", multiply, product.n_blocks(), 32 * kWarps, 0, stream, product);
}

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
