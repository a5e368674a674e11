#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/weights.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/quantized.h"
#include "ei/ops/weight_blocks.h"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;

// Where numbers 8 i to 8 i + 7 of a row are that is in blocks: eights of two blocks take turns.
__device__ inline int place_of_eight(int i, int cols) {
  const int begin = i / 8 * 64, block = i % 8 / 4, in_block = i % 4;
  return begin + 8 * (begin + 32 < cols ? 2 * in_block + block : in_block);
}

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

// Scales of blocks go apart from their numbers, which go in the order of multiply().
__global__ void __launch_bounds__(kThreads)
    split(const uint8_t* from, uint8_t* to, float* scale, int cols) {
  constexpr int kBytes = static_cast<int>(block_of(WeightFormat::kFP8).bytes);
  const int64_t row = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < cols / 8; i += kThreads) {
    const auto* block =
        reinterpret_cast<const uint32_t*>(from + (row * (cols / 32) + i / 4) * kBytes);
    const uint32_t* eight = block + 1 + i % 4 * 2;
    *reinterpret_cast<uint2*>(to + row * cols + place_of_eight(i, cols)) = {eight[0], eight[1]};
    if (i % 4 == 0) scale[row * (cols / 32) + i / 4] = __uint_as_float(block[0]);
  }
}

__global__ void __launch_bounds__(kThreads) widen_rows(const uint8_t* weight, const float* scale,
                                                       const int32_t* tokens, bf16* to, int cols) {
  const int64_t row = tokens == nullptr ? int64_t{blockIdx.x} : tokens[blockIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < cols / 8; i += kThreads) {
    const uint2 eight =
        *reinterpret_cast<const uint2*>(weight + row * cols + place_of_eight(i, cols));
    const uint2 low = bf16_pairs<WeightFormat::kFP8>(eight.x),
                high = bf16_pairs<WeightFormat::kFP8>(eight.y);
    auto numbers = Numbers<8>::of({low.x, low.y, high.x, high.y});
#pragma unroll
    for (float& x : numbers.x) x *= scale[row * (cols / 32) + i / 4];
    numbers.store(to + int64_t{blockIdx.x} * cols + 8 * i);
  }
}

// Few rows of x by weights in e4m3, bound by reading these once: they go from memory to registers,
// kStages steps of 64 columns under way, and from there to the tensor cores as bf16, exactly. The
// warps of a block share out the columns. Which of them are one product's is free as long as x
// agrees: a lane takes 16 of a row that lie together. Sums of a block of 32 are multiplied by its
// scale, or all by their row's at the end.
constexpr int kE4m3Outputs = 16;  // of a thread block
constexpr int kWarps = 8, kStages = 4, kStep = 64 * kWarps;

template <bool kByBlock, int kTiles>
__global__ void __launch_bounds__(32 * kWarps, kTiles == 1 && !kByBlock ? 3 : 2)
    multiply(const __grid_constant__ FewRows p) {
  constexpr int kOutputs = kE4m3Outputs;
  __shared__ float totals[kWarps][8 * kTiles][kOutputs];
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int quad = lane / 4, in_quad = lane % 4;
  const int first = (static_cast<int>(blockIdx.x) - p.first_block[which]) * kOutputs;

  const uint8_t* rows[2];  // of the weight: a lane's two of 16
  const float* scales[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = min(first + quad + 8 * r, part.m - 1);
    rows[r] = static_cast<const uint8_t*>(part.weight) + row * p.k;
    scales[r] = part.scale + row * (p.k / 32);
  }
  struct Step {
    uint4 words[2];
    float scale[2][2];  // of a row's two blocks
  } held[kStages];
  const auto fetch = [&](Step& to, int begin) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint8_t* at = rows[r] + begin + 16 * in_quad;
      if constexpr (kByBlock) {
        const bool has_two = begin + 32 < p.k, has_one = begin < p.k;
        to.words[r] = has_two ? load_once_16(at) : uint4{};
        if (has_one && !has_two) {
          const uint2 eight = *reinterpret_cast<const uint2*>(at - 8 * in_quad);
          to.words[r] = {eight.x, eight.y, 0, 0};
        }
        to.scale[r][0] = has_one ? __ldg(scales[r] + begin / 32) : 0;
        to.scale[r][1] = has_two ? __ldg(scales[r] + begin / 32 + 1) : 0;
      } else {
        to.words[r] = begin + 16 * in_quad < p.k ? load_once_16(at) : uint4{};
      }
    }
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) fetch(held[s], 64 * warp + s * kStep);
  float sums[kTiles][4] = {};
  for (int from = 64 * warp; from < p.k; from += kStages * kStep) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      const int begin = from + s * kStep;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = begin + (kByBlock ? 32 * half + 8 * in_quad : 16 * in_quad + 8 * half);
        uint32_t a[2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint2 low = bf16_pairs<WeightFormat::kFP8>(word_of(held[s].words[0], 2 * half + j));
          const uint2 high =
              bf16_pairs<WeightFormat::kFP8>(word_of(held[s].words[1], 2 * half + j));
          a[j][0] = low.x, a[j][1] = high.x, a[j][2] = low.y, a[j][3] = high.y;
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const int row = 8 * t + quad;
          Bf16x8 b{};
          if (row < p.n && column < p.k)
            b = *reinterpret_cast<const Bf16x8*>(p.x + int64_t{row} * p.k + column);
          float of_block[4] = {};
          auto& to = kByBlock ? of_block : sums[t];
#pragma unroll
          for (int j = 0; j < 2; ++j) mma_16816(to, a[j], b.word[2 * j], b.word[2 * j + 1]);
          if constexpr (kByBlock) {
#pragma unroll
            for (int e = 0; e < 4; ++e)
              sums[t][e] = fmaf(held[s].scale[e / 2][half], of_block[e], sums[t][e]);
          }
        }
      }
      fetch(held[s], begin + kStages * kStep);
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      totals[warp][8 * t + 2 * in_quad + e % 2][quad + e / 2 * 8] = sums[t][e];
  }
  __syncthreads();
  for (int i = thread; i < p.n * kOutputs; i += 32 * kWarps) {
    const int row = i / kOutputs, at = first + i % kOutputs;
    if (at >= part.m) continue;
    float y = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) y += totals[w][row][i % kOutputs];
    if (!kByBlock) y *= part.scale[at];
    part.store(int64_t{row} * part.m + at, part.bias == nullptr ? y : y + part.bias[at]);
  }
}

// One row: in floats, by so many warps at a time that no load need be ahead of its use. A warp
// takes two outputs and every fourth of the steps of 512 columns.
constexpr int kParts = 4, kWarpOutputs = 2, kOutputsOfOne = kWarps / kParts * kWarpOutputs;

template <bool kByBlock>
__global__ void __launch_bounds__(32 * kWarps, kByBlock ? 5 : 8)
    multiply_one(const __grid_constant__ FewRows p) {
  __shared__ float totals[kWarps][kWarpOutputs];
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int in_quad = lane % 4;
  const int first_of_block = (static_cast<int>(blockIdx.x) - p.first_block[which]) * kOutputsOfOne;
  const int first = first_of_block + warp / kParts * kWarpOutputs;

  float sums[kWarpOutputs] = {};
  for (int begin = 512 * (warp % kParts) + lane / 4 * 64; begin < p.k; begin += 512 * kParts) {
    const bool has_two = begin + 32 < p.k;  // blocks
    if (!kByBlock && begin + 16 * in_quad >= p.k) continue;
    uint4 words[kWarpOutputs];
    float scale[kWarpOutputs][2];
#pragma unroll
    for (int r = 0; r < kWarpOutputs; ++r) {
      const int64_t row = min(first + r, part.m - 1);
      const uint8_t* at = static_cast<const uint8_t*>(part.weight) + row * p.k + begin;
      if (!kByBlock || has_two) {
        words[r] = load_once_16(at + 16 * in_quad);
      } else {
        const uint2 eight = *reinterpret_cast<const uint2*>(at + 8 * in_quad);
        words[r] = {eight.x, eight.y, 0, 0};
      }
      if constexpr (kByBlock) {
        const float* scales = part.scale + row * (p.k / 32) + begin / 32;
        scale[r][0] = __ldg(scales);
        scale[r][1] = has_two ? __ldg(scales + 1) : 0;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = begin + (kByBlock ? 32 * half + 8 * in_quad : 16 * in_quad + 8 * half);
      if (column >= p.k) continue;
      const Bf16x8 x = *reinterpret_cast<const Bf16x8*>(p.x + column);
#pragma unroll
      for (int r = 0; r < kWarpOutputs; ++r) {
        float of_block = 0;
        float& to = kByBlock ? of_block : sums[r];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t two = to_f16x2(word_of(words[r], 2 * half + j / 2) >> 16 * (j % 2));
          __half2 pair;
          memcpy(&pair, &two, 4);
          const float2 w = __half22float2(pair);
          to = fmaf(w.y, x[2 * j + 1], fmaf(w.x, x[2 * j], to));
        }
        if constexpr (kByBlock) sums[r] = fmaf(scale[r][half], of_block, sums[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpOutputs; ++r) {
    const float sum = warp_reduce(sums[r], Sum{});
    if (lane == 0) totals[warp][r] = sum;
  }
  __syncthreads();
  const int at = first_of_block + thread;
  if (thread >= kOutputsOfOne || at >= part.m) return;
  float y = 0;
#pragma unroll
  for (int w = 0; w < kParts; ++w)
    y += totals[thread / kWarpOutputs * kParts + w][thread % kWarpOutputs];
  if (!kByBlock) y *= part.scale[at];
  part.store(at, part.bias == nullptr ? y : y + part.bias[at]);
}

template <int kTiles>
void multiply_by_blocks(const FewRows& p, Stream& stream) {
  if constexpr (kTiles > 1) {
    if (p.n <= 4 * kTiles) return multiply_by_blocks<kTiles / 2>(p, stream);
  }
  launch("MatMul", multiply<true, kTiles>, p.n_blocks(), 32 * kWarps, 0, stream, p);
}

}  // namespace

int64_t e4m3_outputs(int64_t n) { return n == 1 ? kOutputsOfOne : kE4m3Outputs; }

void multiply_e4m3(const FewRows& product, bool by_block, Stream& stream) {
  if (product.n == 1)
    return launch("MatMul", by_block ? multiply_one<true> : multiply_one<false>, product.n_blocks(),
                  32 * kWarps, 0, stream, product);
  if (by_block) return multiply_by_blocks<kMaxPackedRows / 8>(product, stream);
  launch("MatMul", multiply<false, 1>, product.n_blocks(), 32 * kWarps, 0, stream, product);
}

void split_blocks(const void* blocks, int64_t n, int64_t cols, void* to, float* scale,
                  Stream& stream) {
  launch("place", split, static_cast<unsigned>(n), kThreads, 0, stream,
         static_cast<const uint8_t*>(blocks), static_cast<uint8_t*>(to), scale,
         static_cast<int>(cols));
}

void unpack_e4m3(const Weight& weight, const int32_t* tokens, int64_t n, void* to, Stream& stream) {
  launch("unpack", widen_rows, static_cast<unsigned>(n), kThreads, 0, stream,
         static_cast<const uint8_t*>(weight.data), weight.scale, tokens, static_cast<bf16*>(to),
         static_cast<int>(weight.cols));
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
