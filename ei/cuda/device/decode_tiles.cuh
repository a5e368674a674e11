#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "ei/cuda/device/cache_rows.cuh"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/ptx.cuh"

// Tiles of keys and values in shared memory for decode attention, by the type of the cache: how
// they come there, and the products of a warp's 16 keys with the query heads, which are the rows of
// a product. Rows (lane / 4) + 8 r and keys 8 t + 2 (lane % 4) + e of scores are s[t][2 r + e]; t
// counts eights of columns in sums o, whose columns column() names.
namespace ei::cuda {

inline constexpr int kDecodeWarps = 4, kDecodeThreads = 32 * kDecodeWarps;
inline constexpr int kDecodeKeys = 16 * kDecodeWarps;  // of a tile

template <int kDim>
struct Bf16Tile {
  static constexpr bool kScaled = false;
  static constexpr int kStages = 3;  // tiles in shared memory
  static constexpr int kD = kDim, kChunks = kD / 8;
  using Query = uint32_t[kD / 16][4];

  uint4 k[kDecodeKeys * kChunks];  // chunk c of row r at c ^ r % 8
  uint4 v[kDecodeKeys * kChunks];

  __device__ void load(const CacheRows& rows, int64_t kv_head, int first, int end) {
#pragma unroll
    for (int i = 0; i < kDecodeKeys * kChunks / kDecodeThreads; ++i) {
      const int at = i * kDecodeThreads + static_cast<int>(threadIdx.x);
      const int row = at / kChunks, chunk = at % kChunks, to = row * kChunks + (chunk ^ row % 8);
      const bool valid = first + row < end;
      const bf16* key = rows.key<bf16>(kv_head, valid ? first + row : first) + 8 * chunk;
      copy_async_16(&k[to], key, valid);
      copy_async_16(&v[to], key + int64_t{rows.first_value} * kD, valid);
    }
  }
  __device__ static uint32_t query(const bf16* q, int i, int e) {
    return *reinterpret_cast<const uint32_t*>(q + 16 * i + e / 2 * 8 + threadIdx.x % 4 * 2);
  }
  __device__ void scores(float (&s)[2][4], const Query& q, int first_row) const {
    const int lane = static_cast<int>(threadIdx.x % 32), matrix = lane / 8, row = lane % 8;
    const uint4* keys = k + (first_row + matrix / 2 * 8 + row) * kChunks;
#pragma unroll
    for (int i = 0; i < kD / 16; ++i) {
      uint32_t b[4];
      ldmatrix_x4(b, &keys[(2 * i + matrix % 2) ^ row]);
      mma_16816(s[0], q[i], b[0], b[1]);
      mma_16816(s[1], q[i], b[2], b[3]);
    }
  }
  // Of a key: what its scores are multiplied by, and the logarithm of what its values are.
  __device__ float key_scale(int) const { return 1; }
  __device__ float log_value_scale(int) const { return 0; }
  __device__ void add_values(float (&o)[kD / 8][4], const float (&s)[2][4],
                             const float (&rescale)[2], int first_row) const {
    const int lane = static_cast<int>(threadIdx.x % 32), matrix = lane / 8, row = lane % 8;
    const uint4* values = v + (first_row + matrix % 2 * 8 + row) * kChunks;
    const uint32_t probs[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                               pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
#pragma unroll
    for (int t = 0; t < kD / 8; t += 2) {
      uint32_t b[4];
      ldmatrix_x4_transposed(b, &values[(t + matrix / 2) ^ row]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[t + u][e] *= rescale[e / 2];
        mma_16816(o[t + u], probs, b[2 * u], b[2 * u + 1]);
      }
    }
  }
  __device__ static int column(int t, int e) { return 8 * t + threadIdx.x % 4 * 2 + e; }
};

// Keys of 8 bits and values in e4m3 become f16, which holds them exactly, on their way from shared
// memory to the tensor cores.
// Which columns of a row are a product's is free as long as queries, or sums, agree: a lane takes
// what lies together.
template <int kDim>
struct E4m3Tile {
  static constexpr bool kScaled = true;
  static constexpr int kStages = 2;
  static constexpr int kD = kDim, kChunks = kD / 16;
  static constexpr int kRun = kD / 8;  // columns of sums that a lane has
  using Query = uint32_t[kD / 16][4];

  uint4 k[kDecodeKeys * kChunks];  // chunk c of row r at c ^ swizzle(r)
  uint4 v[kDecodeKeys * kChunks];
  float scales[2][kDecodeKeys];  // of keys, of values

  // Keeps the banks apart of lanes that read two neighbouring rows, or four even ones.
  __device__ static int swizzle(int row) {
    return kD == 128 ? (row & 6) ^ (row & 1) << 2 : row / 2 % 4;
  }
  __device__ void load(const CacheRows& rows, int64_t kv_head, int first, int end) {
    const int thread = static_cast<int>(threadIdx.x);
    const bool of_one_page = rows.page_rows % kDecodeKeys == 0;
    const int page = first / rows.page_rows, in_page = first - page * rows.page_rows;
    const char* start = rows.page<char>(kv_head, page);
    // Rows of a page, or each looked up; where there is none, the first.
    const auto key_of = [&](int row) -> const char* {
      if (of_one_page) return start + int64_t{in_page + row} * kD;
      return rows.key<char>(kv_head, first + row < end ? first + row : first);
    };
#pragma unroll
    for (int i = 0; i < kDecodeKeys * kChunks / kDecodeThreads; ++i) {
      const int at = i * kDecodeThreads + thread;
      const int row = at / kChunks, chunk = at % kChunks,
                to = row * kChunks + (chunk ^ swizzle(row));
      const bool valid = first + row < end;
      const char* key = key_of(row) + 16 * chunk;
      copy_async_16(&k[to], key, valid);
      copy_async_16(&v[to], key + int64_t{rows.first_value} * kD, valid);
    }
    const int row = thread % kDecodeKeys, which = thread / kDecodeKeys;
    const bool valid = first + row < end;
    const float* scale =
        of_one_page ? reinterpret_cast<const float*>(start + rows.scale_offset) + in_page + row
                    : rows.scale(kv_head, valid ? first + row : first);
    copy_async_4(&scales[which][row], scale + which * rows.page_rows, valid);
  }
  // Columns 4 (lane % 4) + 16 j of 64 are those of step j.
  __device__ static uint32_t query(const bf16* q, int i, int e) {
    const auto c = 64 * (i / 4) + threadIdx.x % 4 * 16 + 4 * (i % 4) + e / 2 * 2;
    const auto limited = [](float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); };
    return bits(__floats2half2_rn(limited(to_float(q[c])), limited(to_float(q[c + 1]))));
  }
  __device__ void scores(float (&s)[2][4], const Query& q, int first_row) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int row = first_row + 8 * t + lane / 4;
#pragma unroll
      for (int half = 0; half < kD / 64; ++half) {
        const uint4 word = k[row * kChunks + ((4 * half + lane % 4) ^ swizzle(row))];
        const uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint2 keys = signed_f16_pairs(words[j]);
          mma_16816_f16(s[t], q[4 * half + j], keys.x, keys.y);
        }
      }
    }
  }
  __device__ float key_scale(int row) const { return scales[0][row]; }
  __device__ float log_value_scale(int row) const {
    const float scale = scales[1][row];  // a power of two, or NaN
    return static_cast<float>(static_cast<int>(__float_as_uint(scale) >> 23) - 127) + 0 * scale;
  }
  __device__ void add_values(float (&o)[kD / 8][4], const float (&s)[2][4],
                             const float (&rescale)[2], int first_row) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    uint32_t probs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      probs[i] = bits(__floats2half2_rn(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]));
    uint32_t words[4][kRun / 4];  // of keys 2 (lane % 4), the next, and the eighths behind them
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + i / 2 * 8 + lane % 4 * 2 + i % 2, byte = lane / 4 * kRun;
      const auto* at =
          reinterpret_cast<const char*>(&v[row * kChunks + ((byte / 16) ^ swizzle(row))]) +
          byte % 16;
      memcpy(words[i], __builtin_assume_aligned(at, kRun), kRun);
    }
#pragma unroll
    for (int w = 0; w < kRun / 4; ++w) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Of two columns: of each the numbers of two keys.
        const uint32_t order = half == 0 ? 0x5140 : 0x7362;
        const uint32_t a = __byte_perm(words[0][w], words[1][w], order);
        const uint32_t b = __byte_perm(words[2][w], words[3][w], order);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int t = 4 * w + 2 * half + u;
#pragma unroll
          for (int e = 0; e < 4; ++e) o[t][e] *= rescale[e / 2];
          mma_16816_f16(o[t], probs, to_f16x2(a >> 16 * u), to_f16x2(b >> 16 * u));
        }
      }
    }
  }
  __device__ static int column(int t, int e) { return (threadIdx.x % 4 * 2 + e) * kRun + t; }

 private:
  __device__ static uint32_t bits(__half2 x) {
    uint32_t word;
    memcpy(&word, &x, 4);
    return word;
  }
};

}  // namespace ei::cuda
