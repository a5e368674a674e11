#include <algorithm>

#include "ei/cuda/device/mma_tile.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/device/wgmma.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/sketch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;  // two blocks a multiprocessor
constexpr float kLog2e = 1.44269504f;

// Eight numbers of a row from c on, zeros behind d; kWhole: d is whole eights.
template <bool kWhole>
__device__ Numbers<8> load_eight(const float* row, int c, int d) {
  Numbers<8> x{};
  if constexpr (kWhole) {
    if (c < d) x = Numbers<8>::load_fixed(row + c);
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (c + e < d) x.x[e] = row[c + e];
  }
  return x;
}
template <bool kWhole>
__device__ Bf16x8 load_eight(const bf16* row, int c, int d) {
  if constexpr (kWhole) {
    const uint4 x = c < d ? __ldg(reinterpret_cast<const uint4*>(row + c)) : uint4{};
    return {x.x, x.y, x.z, x.w};
  } else {
    float x[8] = {};
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (c + e < d) x[e] = to_float(row[c + e]);
    return pack_bf16(x);
  }
}

// As operands: a sum of two bf16, the second of which is nothing where there is but one.
__device__ inline void as_operands(const Numbers<8>& x, uint32_t (&high)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    high[e] = pack_bf16(x.x[2 * e], x.x[2 * e + 1]);
    low[e] = pack_bf16(x.x[2 * e] - __uint_as_float(high[e] << 16),
                       x.x[2 * e + 1] - __uint_as_float(high[e] & 0xffff0000u));
  }
}
__device__ inline void as_operands(const Bf16x8& x, uint32_t (&high)[4], uint32_t (&)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) high[e] = x.word[e];
}

// The directions of a KV head as sums of two bf16, in shared memory.
template <int kSteps>
struct Directions {
  static constexpr int kColumns = 16 * kSteps;
  int stride;  // 64 bytes more than whole lines: two rows take all banks
  bf16 *high, *low;

  __host__ __device__ static int stride_of(int d) { return (d + 31) / 64 * 64 + 32; }
  __host__ __device__ static size_t bytes(int d) {
    return static_cast<size_t>(2 * kColumns * stride_of(d)) * sizeof(bf16);
  }
  __device__ Directions(const Sketches& p, int64_t kv_head, unsigned char* shared)
      : stride(stride_of(p.rows.d)),
        high(reinterpret_cast<bf16*>(shared)),
        low(high + kColumns * stride) {
    const int d = p.rows.d;
    const float* from = p.directions + kv_head * p.w * d;
    for (int i = static_cast<int>(threadIdx.x); i < kColumns * stride; i += kThreads) {
      const int row = i / stride, c = i % stride;
      split(row < p.w && c < d ? from[row * d + c] : 0.0f, high[i], low[i]);
    }
    __syncthreads();
  }

  // Products of 16 rows with all directions, by a warp: of x[t], thread l holds rows l / 4 and that
  // + 8, of which it is given the pointers, columns 8 t + 2 (l % 4) and the next. The order in
  // which numbers are added up is free: a thread takes eight of a row at a time.
  template <class T>
  __device__ void multiply(const T* const (&row)[2], int d, float (&x)[2 * kSteps][4]) const {
    if (d % 8 == 0) {
      multiply_by<true>(row, d, x);
    } else {
      multiply_by<false>(row, d, x);
    }
  }
  template <bool kWhole, class T>
  __device__ void multiply_by(const T* const (&row)[2], int d, float (&x)[2 * kSteps][4]) const {
    constexpr int kBatch = sizeof(T) == 2 ? 4 : 2;  // of 32 numbers, under way at once
    const int lane = static_cast<int>(threadIdx.x % 32), depth = (d + 31) / 32 * 32;
    const int at = lane / 4 * stride + lane % 4 * 8;
#pragma unroll
    for (auto& of : x)
#pragma unroll
      for (float& sum : of) sum = 0;
    for (int first = 0; first < depth; first += 32 * kBatch) {
      decltype(load_eight<kWhole>(row[0], 0, d)) numbers[kBatch][2];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          numbers[b][r] = load_eight<kWhole>(row[r], first + 32 * b + lane % 4 * 8, d);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (first + 32 * b >= depth) break;
        uint32_t a[2][4], rest[2][4];
#pragma unroll
        for (int r = 0; r < 2; ++r) as_operands(numbers[b][r], a[r], rest[r]);
#pragma unroll
        for (int t = 0; t < 2 * kSteps; ++t) {
          const int from = at + 8 * t * stride + first + 32 * b;
          const uint4 u = *reinterpret_cast<const uint4*>(high + from);
          const uint4 v = *reinterpret_cast<const uint4*>(low + from);
          const auto add = [&](const uint32_t(&of)[2][4], const uint4& by) {
            mma_16816(x[t], {of[0][0], of[1][0], of[0][1], of[1][1]}, by.x, by.y);
            mma_16816(x[t], {of[0][2], of[1][2], of[0][3], of[1][3]}, by.z, by.w);
          };
          add(a, u);
          add(a, v);
          if constexpr (sizeof(T) == 4) add(rest, u);
        }
      }
    }
  }
};

// Of a row of x the four bytes of step u that a thread holds, x times `inverse` to the nearest.
// Queries and keys have them in one order, whichever it is.
template <int kSteps>
__device__ uint32_t bytes_of(const float (&x)[2 * kSteps][4], int u, int r, float inverse) {
  uint32_t of[4];
#pragma unroll
  for (int e = 0; e < 4; ++e)  // adding it leaves no room for a fraction
    of[e] = __float_as_uint(__fmaf_rn(x[2 * u + e / 2][2 * r + e % 2], inverse, 0x1.8p23f));
  return __byte_perm(__byte_perm(of[0], of[1], 0x40), __byte_perm(of[2], of[3], 0x40), 0x5410);
}

// x . x, by four threads that follow each other and are given the same x.
template <bool kWhole>
__device__ float square(const bf16* x, int d) {
  float sum = 0;
  for (int c = static_cast<int>(threadIdx.x % 4) * 8; c < d; c += 32)
    for (const uint32_t word : load_eight<kWhole>(x, c, d).word) {
      const float low = __uint_as_float(word << 16), high = __uint_as_float(word & 0xffff0000u);
      sum = fmaf(low, low, fmaf(high, high, sum));
    }
  sum += __shfl_xor_sync(kFullWarp, sum, 1);
  return sum + __shfl_xor_sync(kFullWarp, sum, 2);
}

// Queries in bytes; blockIdx.y: KV head.
template <int kSteps>
__global__ void __launch_bounds__(kThreads, 2) project_queries(const __grid_constant__ Sketches p) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int lane = static_cast<int>(threadIdx.x % 32), d = p.rows.d;
  const int64_t kv_head = blockIdx.y, n_groups = p.n_segments * p.segment_groups();
  const Directions<kSteps> directions(p, kv_head, shared);
  const int64_t stride = int64_t{gridDim.x} * (kThreads / 16);
  for (int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32 * 2; first < n_groups;
       first += stride) {
    const bf16* rows[2];
    int64_t asked[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int group = static_cast<int>(min(first + r, n_groups - 1));
      const int of = group % p.segment_groups();
      const int head = of / p.groups;
      const int64_t from = pair_begin(of % p.groups * 8 + lane / 4, p.segment);
      const int64_t position = group / p.segment_groups() * p.segment + from;
      const bf16* const x = p.q + position * p.q_cols + (kv_head * p.heads + head) * d;
      const bool alone = from + 1 == p.segment;  // then twice: all threads add up together
      const bf16* const next = alone ? x : x + p.q_cols;
      const float one = d % 8 == 0 ? square<true>(x, d) : square<false>(x, d);
      const float two = d % 8 == 0 ? square<true>(next, d) : square<false>(next, d);
      const int64_t second = alone ? 0 : asked_of_pair(one, two, head);
      asked[r] = from + second;
      rows[r] = x + second * p.q_cols;
    }
    float x[2 * kSteps][4];
    directions.multiply(rows, d, x);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // As sketch_step() wants them: of a run 12 numbers are in every other thread.
      float most = 0, part = 0;
#pragma unroll
      for (int run = 0; run < 2 * kSteps; run += kSketchRun / 2) {
        float sum = 0;
#pragma unroll
        for (int t = run; t < min(run + static_cast<int>(kSketchRun / 2), 2 * kSteps); ++t) {
          const float one = fabsf(x[t][2 * r]), two = fabsf(x[t][2 * r + 1]);
          most = fmaxf(most, fmaxf(one, two));
          sum += one + two;
        }
        part = fmaxf(part, sum + __shfl_xor_sync(kFullWarp, sum, 2));
      }
#pragma unroll
      for (const int lanes : {1, 2}) {
        most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, lanes));
        part = fmaxf(part, __shfl_xor_sync(kFullWarp, part, lanes));
      }
      const float step = sketch_step(most, part), inverse = step > 0 ? 1 / step : 0;
      if (first + r >= n_groups) continue;
      const int64_t row = (kv_head * n_groups + first + r) * 8 + lane / 4;
#pragma unroll
      for (int u = 0; u < kSteps; ++u)
        p.queries[(row * kSteps + u) * 4 + lane % 4] = bytes_of<kSteps>(x, u, r, inverse);
      if (lane % 4 == 0) {
        p.asked[row] = static_cast<uint32_t>(asked[r]);
        p.query_step[row] = step * p.scale * kLog2e * static_cast<float>(1 << p.shift);
        p.top[row] = 0;
      }
    }
  }
}

// Keys of whole blocks in bytes; blockIdx.y: KV head. T is the cache's type.
template <class T, int kSteps>
__global__ void __launch_bounds__(kThreads, 2) project_keys(const __grid_constant__ Sketches p) {
  constexpr int kRow = Sketches::row_bytes(kSteps);
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float means[16 * kSteps];
  const int lane = static_cast<int>(threadIdx.x % 32), d = p.rows.d, runs = p.runs();
  const int block_keys = static_cast<int>(p.block);
  const int64_t kv_head = blockIdx.y;
  for (int k = static_cast<int>(threadIdx.x); k < 16 * kSteps; k += kThreads)
    means[k] = k < p.w ? p.mean[kv_head * p.w + k] : 0;
  const Directions<kSteps> directions(p, kv_head, shared);
  const int n_warps = static_cast<int>(gridDim.x) * (kThreads / 32);
  for (int block = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) / 32; block < p.n_blocks;
       block += n_warps) {
    float x[2 * kSteps][4];
    const auto project = [&](int run) {
      const T* rows[2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        rows[r] = p.rows.key<T>(
            kv_head, block * block_keys + min(run * kSlots + lane / 4 + 8 * r, block_keys - 1));
      directions.multiply(rows, d, x);
#pragma unroll
      for (int t = 0; t < 2 * kSteps; ++t) {
        const float2 mean = *reinterpret_cast<const float2*>(means + 8 * t + lane % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) x[t][e] -= e % 2 ? mean.y : mean.x;
      }
    };
    float most = 0;
    for (int run = 0; run < runs; ++run) {
      project(run);
#pragma unroll
      for (const auto& of : x)
#pragma unroll
        for (const float number : of) most = fmaxf(most, fabsf(number));
    }
    most = warp_reduce(most, Max{});
    const float step = most / 63, inverse = step > 0 ? 1 / step : 0;
    // Thread l of a sweep holds columns 2 (l % 4) and the next of each 8: a pair of its block's
    // keys.
    const int column = block % kOctet / 2, half = block % 2;
    for (int run = 0; run < runs; ++run) {
      if (runs > 1) project(run);
      const int64_t tile = kv_head * p.tiles() + block / kOctet * runs + run;
      if (lane == 0) p.key_step[tile / 2 * 16 + column * 4 + tile % 2 * 2 + half] = step;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int slot = lane / 4 + 8 * r, in_eight = 2 * column + slot % 2;
        uint32_t* const to = p.keys + tile * p.tile_words() +
                             ((half * 8 + slot / 2) * 8 + in_eight) * (kRow / 4) + lane % 4;
#pragma unroll
        for (int u = 0; u < kSteps; ++u)
          to[(u ^ swizzle<kRow>(in_eight)) * 4] = bytes_of<kSteps>(x, u, r, inverse);
      }
    }
  }
}

}  // namespace

void project_sketches(const Sketches& p, int64_t n_kv_heads, bool bf16_keys, int n_sms,
                      Stream& stream) {
  const auto kv_heads = static_cast<unsigned>(n_kv_heads);
  const auto grid = [&](int64_t n_warps) {
    return dim3(
        static_cast<unsigned>(std::min<int64_t>((n_warps + kThreads / 32 - 1) / (kThreads / 32),
                                                std::max<int64_t>(1, 2 * n_sms / n_kv_heads))),
        kv_heads);
  };
  with_steps(p.steps, [&]<int kSteps> {
    const size_t bytes = Directions<kSteps>::bytes(p.rows.d);
    launch("EstimateMass", project_queries<kSteps>, grid(p.query_rows() / 16 + 1), kThreads, bytes,
           stream, p);
    launch("EstimateMass", bf16_keys ? project_keys<bf16, kSteps> : project_keys<float, kSteps>,
           grid(p.n_blocks), kThreads, bytes, stream, p);
  });
}

}  // namespace ei::cuda
