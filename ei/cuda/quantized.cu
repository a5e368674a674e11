#include "ei/cuda/device/ptx.cuh"
#include "ei/cuda/device/weights.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/quantized.h"

namespace ei::cuda {
namespace {

constexpr int kWarps = 8, kStages = 2;
constexpr int kChunk = 256;  // columns that a warp takes at a time

// What a warp holds of kRows weights: kStages chunks of each as the blocks lie in memory, from the
// 16 bytes on that the first byte is in, and the scales of the chunk at hand.
template <WeightFormat kFormat>
struct Packed {
  using Line = Lines<kFormat>;
  static constexpr int kBytes = static_cast<int>(block_of(kFormat).bytes);
  static constexpr int kBlocks = kChunk / Line::kSize;  // of a row
  static constexpr int kGroups = kBlocks * Line::kGroups;
  static constexpr int kChunkBytes = kBlocks * kBytes;
  static constexpr int kRows = kChunkBytes <= 192 ? 32 : 16;
  static constexpr int kVectors = (kChunkBytes + 29) / 16;  // of a row, wherever it begins
  static constexpr int kStride = 16 * (kVectors | 1);       // odd, for different banks
  static constexpr int kStageBytes = kRows * kStride;
  static constexpr int kLinesBytes = kRows * kGroups * 8;
  static constexpr int kWarpBytes = kStages * kStageBytes + kLinesBytes;
  static constexpr int kStep = kWarps * kChunkBytes;  // from a warp's chunk to its next
  static_assert(kStep % 16 == 0);                     // so that rows begin at the same of 16 bytes
};

// out[n, m] of up to 8 kTiles rows of x. The warps of a block share out the chunks of the columns;
// 16 weights by 16 columns and 8 rows of x are one product of the tensor cores, whose sums are
// scaled once a group.
template <WeightFormat kFormat, int kTiles>
__global__ void __launch_bounds__(32 * kWarps, kTiles < 4 ? 2 : 1)
    multiply(const __grid_constant__ FewRows p) {
  using L = Packed<kFormat>;
  using Line = typename L::Line;
  extern __shared__ uint4 shared[];
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first = (static_cast<int>(blockIdx.x) - p.first_block[which]) * L::kRows;
  const int quad = lane / 4, in_quad = lane % 4;

  auto* memory = reinterpret_cast<uint8_t*>(shared) + warp * L::kWarpBytes;
  auto* lines = reinterpret_cast<float2*>(memory + kStages * L::kStageBytes);
  const int64_t row_bytes = int64_t{p.k} / Line::kSize * L::kBytes;
  const auto* weight = static_cast<const uint8_t*>(part.weight);
  const uint8_t* end = weight + part.m * row_bytes;
  // The vectors that a lane copies of the warp's first chunk, from the tile's first row on.
  const uint8_t* tile = weight + first * row_bytes;
  const auto left = static_cast<int>(min(end - tile, int64_t{INT32_MAX}));
  const auto begin_of = [&](int row) {
    return static_cast<int>(min(row, part.m - 1 - first) * row_bytes) + warp * L::kChunkBytes;
  };
  const auto skew_of = [&](int row) {
    return static_cast<int>((reinterpret_cast<uint64_t>(tile) + begin_of(row)) % 16);
  };
  constexpr int kCopies = (L::kRows * L::kVectors + 31) / 32;
  int from[kCopies], to[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int row = (lane + 32 * i) / L::kVectors, vector = (lane + 32 * i) % L::kVectors;
    from[i] = begin_of(row) - skew_of(row) + 16 * vector;
    to[i] = row * L::kStride + 16 * vector;
  }
  const int n_chunks = (p.k + kChunk - 1) / kChunk;
  const auto fetch = [&](int chunk, int stage) {
    if (chunk < n_chunks) {
      const int step = chunk / kWarps * L::kStep;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int at = from[i] + step;
        if (lane + 32 * i < L::kRows * L::kVectors)
          copy_async_16(memory + stage * L::kStageBytes + to[i], tile + at, at < left);
      }
    }
    copy_async_commit();
  };
  // Where a row's chunk begins.
  const auto row_at = [&](int stage, int row) -> const uint8_t* {
    return memory + stage * L::kStageBytes + row * L::kStride + skew_of(row);
  };

  const bf16* x[kTiles];
  bool has_row[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    has_row[i] = 8 * i + quad < p.n;
    x[i] = p.x + int64_t{has_row[i] ? 8 * i + quad : 0} * p.k + 4 * in_quad;
  }
  float total[L::kRows / 16][kTiles][4] = {};
#pragma unroll
  for (int s = 0; s < kStages; ++s) fetch(warp + s * kWarps, s);
  for (int chunk = warp, stage = 0; chunk < n_chunks; chunk += kWarps, stage ^= 1) {
    copy_async_wait<kStages - 1>();
    __syncwarp();
    // Beyond the last column x is 0, and so are the lines, whatever lies there.
    const int n_columns = min(p.k - chunk * kChunk, kChunk);
#pragma unroll
    for (int j = 0; j < (L::kRows * L::kBlocks + 31) / 32; ++j) {
      const int i = lane + 32 * j, row = i % L::kRows, block = i / L::kRows;
      if (i >= L::kRows * L::kBlocks) break;
      float2* line = lines + block * Line::kGroups * L::kRows + row;
      if (block * Line::kSize < n_columns) {
        const Line all(row_at(stage, row) + block * L::kBytes);
#pragma unroll
        for (int g = 0; g < Line::kGroups; ++g) line[g * L::kRows] = all.line[g];
      } else {
#pragma unroll
        for (int g = 0; g < Line::kGroups; ++g) line[g * L::kRows] = {};
      }
    }
    __syncwarp();

    const uint8_t* row[L::kRows / 8];
#pragma unroll
    for (int i = 0; i < L::kRows / 8; ++i) row[i] = row_at(stage, 8 * i + quad);
#pragma unroll
    for (int g = 0; g < L::kGroups; ++g) {
      float sum[L::kRows / 16][kTiles][4] = {}, sum_x[kTiles][4] = {};
#pragma unroll
      for (int step = 0; step < Line::kGroup / 16; ++step) {
        const int column = g * Line::kGroup + 16 * step;
        uint2 b[kTiles];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          b[i] = {};
          if (has_row[i] && column < n_columns)
            b[i] = __ldg(reinterpret_cast<const uint2*>(x[i] + chunk * kChunk + column));
          if constexpr (Line::kOffsets) {
            constexpr uint32_t kOnes = 0x3F803F80u;
            const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
            mma_16816(sum_x[i], ones, b[i].x, b[i].y);
          }
        }
#pragma unroll
        for (int r = 0; r < L::kRows / 16; ++r) {
          const auto pairs = [&](int half) {
            return bf16_pairs<kFormat>(
                numbers_at<kFormat>(row[2 * r + half] + column / Line::kSize * L::kBytes,
                                    column % Line::kSize, 4 * in_quad));
          };
          const uint2 low = pairs(0), high = pairs(1);
          const uint32_t a[4] = {low.x, high.x, low.y, high.y};
#pragma unroll
          for (int i = 0; i < kTiles; ++i) mma_16816(sum[r][i], a, b[i].x, b[i].y);
        }
      }
#pragma unroll
      for (int r = 0; r < L::kRows / 16; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 line = lines[g * L::kRows + 16 * r + 8 * half + quad];
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& to = total[r][i][2 * half + e];
              to = fmaf(line.x, sum[r][i][2 * half + e], to);
              if constexpr (Line::kOffsets) to = fmaf(-line.y, sum_x[i][e], to);
            }
          }
        }
      }
    }
    __syncwarp();
    fetch(chunk + kStages * kWarps, stage);
  }
  copy_async_wait<0>();
  __syncthreads();

  // Totals of all warps: [warp, row of x, weight].
  static_assert(8 * kTiles * L::kRows * sizeof(float) <= L::kWarpBytes);
  auto* totals = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int r = 0; r < L::kRows / 16; ++r) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        totals[(warp * 8 * kTiles + 8 * i + 2 * in_quad + e % 2) * L::kRows + 16 * r + 8 * (e / 2) +
               quad] = total[r][i][e];
    }
  }
  __syncthreads();
  for (int i = thread; i < p.n * L::kRows; i += 32 * kWarps) {
    const int weight_row = first + i % L::kRows;
    if (weight_row >= part.m) continue;
    float y = part.bias == nullptr ? 0.0f : part.bias[weight_row];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) y += totals[w * 8 * kTiles * L::kRows + i];
    part.store(int64_t{i / L::kRows} * part.m + weight_row, y);
  }
}

template <WeightFormat kFormat, int kTiles>
void launch_multiply(const FewRows& p, Stream& stream) {
  if constexpr (kTiles > 1) {
    if (p.n <= 4 * kTiles) return launch_multiply<kFormat, kTiles / 2>(p, stream);
  }
  launch("MatMul", multiply<kFormat, kTiles>, p.n_blocks(), 32 * kWarps,
         kWarps * Packed<kFormat>::kWarpBytes, stream, p);
}

constexpr int kUnpackedColumns = 2048;  // of a row, by a thread block

template <WeightFormat kFormat>
__global__ void __launch_bounds__(kUnpackedColumns / 8)
    unpack(const uint8_t* weight, const int32_t* tokens, bf16* to, int cols) {
  using Line = Lines<kFormat>;
  __shared__ float2 lines[kUnpackedColumns / Line::kGroup];
  constexpr int kBytes = static_cast<int>(block_of(kFormat).bytes);
  const int thread = static_cast<int>(threadIdx.x);
  const int begin = static_cast<int>(blockIdx.y) * kUnpackedColumns;
  const int64_t row = tokens == nullptr ? int64_t{blockIdx.x} : tokens[blockIdx.x];
  const uint8_t* blocks = weight + (row * cols + begin) / Line::kSize * kBytes;
  if (thread < min(kUnpackedColumns, cols - begin) / Line::kSize) {
    const Line all(blocks + thread * kBytes);
#pragma unroll
    for (int g = 0; g < Line::kGroups; ++g) lines[thread * Line::kGroups + g] = all.line[g];
  }
  __syncthreads();
  const int column = 8 * thread;
  if (begin + column >= cols) return;
  const uint8_t* block = blocks + column / Line::kSize * kBytes;
  const float2 line = lines[column / Line::kGroup];
  Bf16x8 pairs;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint2 two = bf16_pairs<kFormat>(
        numbers_at<kFormat>(block, column % Line::kSize / 16 * 16, column % 16 + 4 * i));
    pairs.word[2 * i] = two.x;
    pairs.word[2 * i + 1] = two.y;
  }
  float y[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) y[e] = fmaf(line.x, pairs[e], -line.y);
  *reinterpret_cast<Bf16x8*>(to + int64_t{blockIdx.x} * cols + begin + column) = pack_bf16(y);
}

__global__ void permute_columns(const bf16* x, const int32_t* order, bf16* to, int cols) {
  const int64_t row = int64_t{blockIdx.x} * cols;
  for (int j = static_cast<int>(threadIdx.x); j < cols; j += static_cast<int>(blockDim.x))
    to[row + j] = x[row + order[j]];
}

}  // namespace

int64_t packed_rows(WeightFormat format) {
  int64_t rows = 0;
  with_integers(format, [&]<WeightFormat kFormat>() { rows = Packed<kFormat>::kRows; });
  return rows;
}

void multiply_packed(const FewRows& product, WeightFormat format, Stream& stream) {
  with_integers(format, [&]<WeightFormat kFormat>() {
    launch_multiply<kFormat, kMaxPackedRows / 8>(product, stream);
  });
}

void unpack(const Weight& weight, const int32_t* tokens, int64_t n, void* to, Stream& stream) {
  if (weight.format == WeightFormat::kFP8) return unpack_e4m3(weight, tokens, n, to, stream);
  const dim3 grid(static_cast<unsigned>(n), blocks_for(weight.cols, kUnpackedColumns));
  with_integers(weight.format, [&]<WeightFormat kFormat>() {
    void (*kernel)(const uint8_t*, const int32_t*, bf16*, int) = unpack<kFormat>;
    launch("unpack", kernel, grid, kUnpackedColumns / 8, 0, stream,
           static_cast<const uint8_t*>(weight.data), tokens, static_cast<bf16*>(to),
           static_cast<int>(weight.cols));
  });
}

void permute_columns(const Act& x, const int32_t* order, void* to, Stream& stream) {
  void (*kernel)(const bf16*, const int32_t*, bf16*, int) = permute_columns;
  launch("MatMul", kernel, static_cast<unsigned>(x.rows), 256, 0, stream,
         static_cast<const bf16*>(x.data), order, static_cast<bf16*>(to), static_cast<int>(x.cols));
}

}  // namespace ei::cuda
