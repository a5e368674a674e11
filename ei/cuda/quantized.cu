#include <algorithm>

#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/device/weight_tiles.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/quantized.h"

namespace ei::cuda {
namespace {

constexpr int kWarps = 8;

__device__ int n_chunks(int cols) { return (cols + kTileColumns - 1) / kTileColumns; }

template <WeightFormat kFormat>
__device__ void load_tile(uint4 (&to)[Tile<kFormat>::kVectors], const uint8_t* of_lane) {
#pragma unroll
  for (int i = 0; i < Tile<kFormat>::kVectors; ++i) to[i] = load_once_16(of_lane + 512 * i);
}

// A step's weights as an operand.
template <WeightFormat kFormat>
__device__ void operand(uint32_t (&a)[4], const uint4 (&held)[Tile<kFormat>::kVectors], int step) {
  const uint2 low = bf16_pairs<kFormat>(numbers_of<kFormat>(held, step, 0));
  const uint2 high = bf16_pairs<kFormat>(numbers_of<kFormat>(held, step, 1));
  a[0] = low.x, a[1] = high.x, a[2] = low.y, a[3] = high.y;
}

// sum += ones b.
__device__ void add_up(float (&sum)[4], const uint2& b) {
  constexpr uint32_t kOnes = 0x3F803F80u;
  const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
  mma_16816(sum, ones, b.x, b.y);
}

// One row of x: the 8 columns of a product are x in 8 groups of the tile's columns. By the weights
// of a group only one of them is wanted, which a lane of four has, that scales it. The warps of a
// block share out the columns of 16 outputs; there are so many at a time that no load need be ahead
// of its use.
constexpr int kMaxWarpsOfOne = 12;

template <WeightFormat kFormat>
__global__ void __launch_bounds__(32 * kMaxWarpsOfOne, 2)
    multiply_one(const __grid_constant__ FewRows p) {
  using T = Tile<kFormat>;
  __shared__ float totals[kMaxWarpsOfOne][kTileRows];
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int n_warps = static_cast<int>(blockDim.x) / 32;
  const int quad = lane / 4, in_quad = lane % 4;
  const int row = static_cast<int>(blockIdx.x) - p.first_block[which];  // of tiles
  const uint8_t* tile =
      static_cast<const uint8_t*>(part.weight) + (int64_t{row} * n_chunks(p.k) + warp) * T::kBytes;
  const uint8_t* numbers = tile + 16 * lane;
  const uint8_t* heads = tile + T::kHeadsAt + quad * T::kHeadBytes;
  // What a lane has of x: steps of group `quad`, 8 times so many columns apart.
  constexpr int kSteps = T::kGroup / 16, kEights = 2 / kSteps;
  int column = warp * kTileColumns + T::kGroup * quad + 4 * in_quad;

  float total[2] = {};
  for (int chunk = warp; chunk < n_chunks(p.k); chunk += n_warps) {
    uint4 held[T::kVectors];
    load_tile<kFormat>(held, numbers);
    uint2 x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = column + (kEights == 2 ? 128 : 16) * i;
      x[i] = at < p.k ? __ldg(reinterpret_cast<const uint2*>(p.x + at)) : uint2{};
    }
    LinePair<kFormat> lines[kEights][2];
#pragma unroll
    for (int i = 0; i < 2 * kEights; ++i)
      lines[i / 2][i % 2] = {heads + i % 2 * 8 * T::kHeadBytes, 4 * (i / 2) + in_quad};
#pragma unroll
    for (int eight = 0; eight < kEights; ++eight) {
      float sum[4] = {}, sum_x[4] = {};
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        float of_group[4] = {};
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          uint32_t a[4];
          operand<kFormat>(a, held, (8 * eight + g) * kSteps + i);
          mma_16816(of_group, a, x[eight + i].x, x[eight + i].y);
        }
        if (in_quad == g / 2) sum[g % 2] = of_group[g % 2], sum[2 + g % 2] = of_group[2 + g % 2];
      }
      if constexpr (T::kOffsets) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) add_up(sum_x, x[eight + i]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 line = lines[eight][e / 2].line[e % 2];
        total[e / 2] = fmaf(line.x, sum[e], total[e / 2]);
        if constexpr (T::kOffsets) total[e / 2] = fmaf(-line.y, sum_x[e % 2], total[e / 2]);
      }
    }
    column += n_warps * kTileColumns;
    numbers += n_warps * T::kBytes;
    heads += n_warps * T::kBytes;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(kFullWarp, total[r], 1);
    total[r] += __shfl_xor_sync(kFullWarp, total[r], 2);
    if (in_quad == 0) totals[warp][quad + 8 * r] = total[r];
  }
  __syncthreads();
  const int at = row * kTileRows + thread;
  if (thread >= kTileRows || at >= part.m) return;
  float y = part.bias == nullptr ? 0.0f : part.bias[at];
#pragma unroll
  for (int w = 0; w < kMaxWarpsOfOne; ++w) y += w < n_warps ? totals[w][thread] : 0;
  part.store(at, y);
}

// Rows of tiles that a thread block takes for several rows of x.
template <WeightFormat kFormat>
inline constexpr int kTall = Tile<kFormat>::kVectors < 6 ? 2 : 1;

// out[n, m] of up to 8 kTiles rows of x. The warps of a block share out the chunks of the columns;
// 16 weights by 16 columns and 8 rows of x are one product of the tensor cores, whose sums are
// scaled once a group.
template <WeightFormat kFormat, int kTiles>
__global__ void __launch_bounds__(32 * kWarps, kTiles < 4 ? 2 : 1)
    multiply(const __grid_constant__ FewRows p) {
  using T = Tile<kFormat>;
  constexpr int kOutputs = kTall<kFormat> * kTileRows;
  extern __shared__ float totals[];  // [warp, row of x, weight]
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first = (static_cast<int>(blockIdx.x) - p.first_block[which]) * kOutputs;
  const int quad = lane / 4, in_quad = lane % 4;

  const uint8_t* tiles[kTall<kFormat>];
#pragma unroll
  for (int r = 0; r < kTall<kFormat>; ++r) {
    const int row = min(first / kTileRows + r, (part.m - 1) / kTileRows);
    tiles[r] = static_cast<const uint8_t*>(part.weight) + int64_t{row} * n_chunks(p.k) * T::kBytes;
  }
  const bf16* x[kTiles];
  bool has_row[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    has_row[i] = 8 * i + quad < p.n;
    x[i] = p.x + int64_t{has_row[i] ? 8 * i + quad : 0} * p.k + 4 * in_quad;
  }
  float total[kTall<kFormat>][kTiles][4] = {};
  for (int chunk = warp; chunk < n_chunks(p.k); chunk += kWarps) {
    uint4 held[kTall<kFormat>][T::kVectors];
    const uint8_t* heads[kTall<kFormat>];
#pragma unroll
    for (int r = 0; r < kTall<kFormat>; ++r) {
      const uint8_t* tile = tiles[r] + int64_t{chunk} * T::kBytes;
      load_tile<kFormat>(held[r], tile + 16 * lane);
      heads[r] = tile + T::kHeadsAt + quad * T::kHeadBytes;
    }
    // Of 8 groups; lane l has those of groups 2 (l % 4) and 2 (l % 4) + 1.
#pragma unroll
    for (int eight = 0; eight < 32 / T::kGroup; ++eight) {
      float2 line[kTall<kFormat>][2][2];
#pragma unroll
      for (int r = 0; r < kTall<kFormat>; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const LinePair<kFormat> pair(heads[r] + half * 8 * T::kHeadBytes, 4 * eight + in_quad);
          line[r][half][0] = pair.line[0], line[r][half][1] = pair.line[1];
        }
      }
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        float sum[kTall<kFormat>][kTiles][4] = {}, sum_x[kTiles][4] = {};
#pragma unroll
        for (int step = 0; step < T::kGroup / 16; ++step) {
          const int s = (8 * eight + g) * (T::kGroup / 16) + step;
          const int column = chunk * kTileColumns + 16 * s;
          uint2 b[kTiles];
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            b[i] = {};
            if (has_row[i] && column < p.k)
              b[i] = __ldg(reinterpret_cast<const uint2*>(x[i] + column));
            if constexpr (T::kOffsets) add_up(sum_x[i], b[i]);
          }
#pragma unroll
          for (int r = 0; r < kTall<kFormat>; ++r) {
            uint32_t a[4];
            operand<kFormat>(a, held[r], s);
#pragma unroll
            for (int i = 0; i < kTiles; ++i) mma_16816(sum[r][i], a, b[i].x, b[i].y);
          }
        }
#pragma unroll
        for (int r = 0; r < kTall<kFormat>; ++r) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2& mine = line[r][half][g % 2];
            const float scale = __shfl_sync(kFullWarp, mine.x, g / 2, 4);
            const float offset = T::kOffsets ? __shfl_sync(kFullWarp, mine.y, g / 2, 4) : 0;
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                float& to = total[r][i][2 * half + e];
                to = fmaf(scale, sum[r][i][2 * half + e], to);
                if constexpr (T::kOffsets) to = fmaf(-offset, sum_x[i][e], to);
              }
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kTall<kFormat>; ++r) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        totals[(warp * 8 * kTiles + 8 * i + 2 * in_quad + e % 2) * kOutputs + 16 * r + 8 * (e / 2) +
               quad] = total[r][i][e];
    }
  }
  __syncthreads();
  for (int i = thread; i < p.n * kOutputs; i += 32 * kWarps) {
    const int at = first + i % kOutputs;
    if (at >= part.m) continue;
    float y = part.bias == nullptr ? 0.0f : part.bias[at];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) y += totals[w * 8 * kTiles * kOutputs + i];
    part.store(int64_t{i / kOutputs} * part.m + at, y);
  }
}

template <WeightFormat kFormat, int kTiles>
void launch_multiply(const FewRows& p, Stream& stream) {
  if constexpr (kTiles > 1) {
    if (p.n <= 4 * kTiles) return launch_multiply<kFormat, kTiles / 2>(p, stream);
  }
  launch("MatMul", multiply<kFormat, kTiles>, p.n_blocks(), 32 * kWarps,
         kWarps * 8 * kTiles * kTall<kFormat> * kTileRows * sizeof(float), stream, p);
}

// A warp makes a tile of what lies in blocks.
template <WeightFormat kFormat>
__global__ void __launch_bounds__(32 * kWarps)
    make_tiles(const uint8_t* blocks, uint8_t* to, int rows, int cols) {
  using T = Tile<kFormat>;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int chunk = static_cast<int>(blockIdx.y) * kWarps + warp;
  if (chunk >= n_chunks(cols)) return;
  const int columns = min(kTileColumns, cols - chunk * kTileColumns);  // the rest is zeros
  uint8_t* tile = to + (int64_t{blockIdx.x} * n_chunks(cols) + chunk) * T::kBytes;
  const auto row_at = [&](int in_tile) -> const uint8_t* {
    const int64_t row = int64_t{blockIdx.x} * kTileRows + in_tile;
    return row < rows ? blocks + row * (cols / T::kSize * T::kBlockBytes) + chunk * T::kRowBytes
                      : nullptr;
  };
  uint32_t words[T::kVectors][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint8_t* row = row_at(lane / 4 + 8 * half);
#pragma unroll
    for (int s = 0; s < kTileSteps; ++s) {
      const int column = 16 * s + lane % 4 * 4;
      const uint32_t numbers =
          row != nullptr && column < columns
              ? numbers_at<kFormat>(row + column / T::kSize * T::kBlockBytes, column % T::kSize)
              : 0;
      using Low = InPlane<T::kBits>;
      const Low at(s, half);
      words[at.vector][at.word] |= (numbers & Low::kMasks) << at.shift;
      if constexpr (T::kMoreBits > 0) {
        using More = InPlane<T::kMoreBits>;
        const More more(s, half);
        words[T::kBits + more.vector][more.word] |= (numbers >> T::kBits & More::kMasks)
                                                    << more.shift;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < T::kVectors; ++i)
    reinterpret_cast<uint4*>(tile)[32 * i + lane] = {words[i][0], words[i][1], words[i][2],
                                                     words[i][3]};
  for (int i = lane; i < kTileRows * T::kHeadBytes; i += 32) {
    const uint8_t* row = row_at(i / T::kHeadBytes);
    const int from = T::head_from(i % T::kHeadBytes);
    tile[T::kHeadsAt + i] =
        row != nullptr && from < columns / T::kSize * T::kBlockBytes ? row[from] : 0;
  }
}

// A warp takes a tile: all its rows, or that of a token.
template <WeightFormat kFormat>
__global__ void __launch_bounds__(32 * kWarps)
    unpack(const uint8_t* weight, const int32_t* tokens, bf16* to, int rows, int cols) {
  using T = Tile<kFormat>;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int quad = lane / 4, in_quad = lane % 4;
  const int chunk = static_cast<int>(blockIdx.y) * kWarps + warp;
  if (chunk >= n_chunks(cols)) return;
  const int token = tokens == nullptr ? -1 : tokens[blockIdx.x];
  const int64_t row = token < 0 ? int64_t{blockIdx.x} : token / kTileRows;  // of tiles
  const uint8_t* tile = weight + (row * n_chunks(cols) + chunk) * T::kBytes;
  uint4 held[T::kVectors];
  load_tile<kFormat>(held, tile + 16 * lane);
  bf16* out[2];  // where rows of a lane go, or null
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int in_tile = quad + 8 * half;
    const int64_t at = token < 0 ? row * kTileRows + in_tile : int64_t{blockIdx.x};
    const bool wanted = token < 0 ? at < rows : token % kTileRows == in_tile;
    out[half] = wanted ? to + at * cols + chunk * kTileColumns + 4 * in_quad : nullptr;
  }
  const int columns = cols - chunk * kTileColumns;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int eight = 0; eight < 32 / T::kGroup; ++eight) {
      const LinePair<kFormat> mine(tile + T::kHeadsAt + (quad + 8 * half) * T::kHeadBytes,
                                   4 * eight + in_quad);
#pragma unroll
      for (int g = 0; g < 8; ++g) {
        const float scale = __shfl_sync(kFullWarp, mine.line[g % 2].x, g / 2, 4);
        const float offset = __shfl_sync(kFullWarp, mine.line[g % 2].y, g / 2, 4);
#pragma unroll
        for (int step = 0; step < T::kGroup / 16; ++step) {
          const int s = (8 * eight + g) * (T::kGroup / 16) + step;
          const uint2 pairs = bf16_pairs<kFormat>(numbers_of<kFormat>(held, s, half));
          const auto weights = [&](uint32_t two) {
            return pack_bf16(fmaf(scale, __uint_as_float(two << 16), -offset),
                             fmaf(scale, __uint_as_float(two & 0xffff0000u), -offset));
          };
          if (out[half] != nullptr && 16 * s < columns)
            *reinterpret_cast<uint2*>(out[half] + 16 * s) = {weights(pairs.x), weights(pairs.y)};
        }
      }
    }
  }
}

__global__ void permute_columns(const bf16* x, const int32_t* order, bf16* to, int cols) {
  const int64_t row = int64_t{blockIdx.x} * cols;
  for (int j = static_cast<int>(threadIdx.x); j < cols; j += static_cast<int>(blockDim.x))
    to[row + j] = x[row + order[j]];
}

// Warps that share out the columns of a row of tiles, all of them as many: more than 8 where that
// leaves warps without work that would fit, 24 on each of 132 multiprocessors.
unsigned warps_of_one(const FewRows& product) {
  const int64_t n_chunks = blocks_for(product.k, kTileColumns);
  const int64_t most = std::clamp<int64_t>(24 * 132 / product.n_blocks(), 8, kMaxWarpsOfOne);
  return blocks_for(n_chunks, blocks_for(n_chunks, most));
}

dim3 grid_of_tiles(int64_t rows_of_tiles, int64_t cols) {
  return {static_cast<unsigned>(rows_of_tiles), blocks_for(cols, kTileColumns * kWarps)};
}

}  // namespace

int64_t packed_outputs(WeightFormat format, int64_t n) {
  int64_t tall = 1;
  if (n > 1) with_integers(format, [&]<WeightFormat kFormat>() { tall = kTall<kFormat>; });
  return tall * kTileRows;
}

void multiply_packed(const FewRows& product, WeightFormat format, Stream& stream) {
  with_integers(format, [&]<WeightFormat kFormat>() {
    if (product.n > 1) return launch_multiply<kFormat, kMaxPackedRows / 8>(product, stream);
    launch("MatMul", multiply_one<kFormat>, product.n_blocks(), 32 * warps_of_one(product), 0,
           stream, product);
  });
}

void pack(const void* blocks, WeightFormat format, int64_t n, int64_t cols, void* to,
          Stream& stream) {
  with_integers(format, [&]<WeightFormat kFormat>() {
    launch("place", make_tiles<kFormat>, grid_of_tiles(blocks_for(n, kTileRows), cols), 32 * kWarps,
           0, stream, static_cast<const uint8_t*>(blocks), static_cast<uint8_t*>(to),
           static_cast<int>(n), static_cast<int>(cols));
  });
}

void unpack(const Weight& weight, const int32_t* tokens, int64_t n, void* to, Stream& stream) {
  if (weight.format == WeightFormat::kFP8) return unpack_e4m3(weight, tokens, n, to, stream);
  const dim3 grid = grid_of_tiles(tokens == nullptr ? blocks_for(n, kTileRows) : n, weight.cols);
  with_integers(weight.format, [&]<WeightFormat kFormat>() {
    void (*kernel)(const uint8_t*, const int32_t*, bf16*, int, int) = unpack<kFormat>;
    launch("unpack", kernel, grid, 32 * kWarps, 0, stream, static_cast<const uint8_t*>(weight.data),
           tokens, static_cast<bf16*>(to), static_cast<int>(n), static_cast<int>(weight.cols));
  });
}

void permute_columns(const Act& x, const int32_t* order, void* to, Stream& stream) {
  void (*kernel)(const bf16*, const int32_t*, bf16*, int) = permute_columns;
  launch("MatMul", kernel, static_cast<unsigned>(x.rows), 256, 0, stream,
         static_cast<const bf16*>(x.data), order, static_cast<bf16*>(to), static_cast<int>(x.cols));
}

}  // namespace ei::cuda
