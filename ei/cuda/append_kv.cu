#include <algorithm>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 128;

struct Params {
  struct Sequence {
    CacheRows rows;
    int32_t* n_rows;
    int n_heads;
    int copies;  // cache heads of one head of k
  };
  Sequence sequences[kMaxSequences];
  const bf16* k;  // [n_sequences * share, cols]
  const bf16* v;
  int64_t cols;
  int share;      // rows of each sequence
  int tile_rows;  // of a block of threads; a multiple of `block`
  int block;      // of the bounds; a thread takes its columns of so many rows
  float* low;     // [n_kv_heads, max_blocks, d], or null
  float* high;
  int64_t max_blocks;
};

// blockIdx: tile of rows, KV head, sequence. Tiles are cut at absolute multiples of tile_rows, so
// that a bound belongs to one thread. kWidth columns a thread.
template <class T, int kWidth>
__global__ void append(const __grid_constant__ Params p) {
  const Params::Sequence& sequence = p.sequences[blockIdx.z];
  const int head = static_cast<int>(blockIdx.y), d = sequence.rows.d;
  if (head >= sequence.n_heads) return;
  const int begin = sequence.n_rows[head], end = begin + p.share;
  const int tile = (begin / p.tile_rows + static_cast<int>(blockIdx.x)) * p.tile_rows;
  const int64_t column = int64_t{head / sequence.copies} * d;
  const int64_t first = int64_t{blockIdx.z} * p.share - begin;  // row of k for cache row 0

  const int vectors = d / kWidth;
  for (int i = static_cast<int>(threadIdx.x); i < p.tile_rows / p.block * vectors; i += kThreads) {
    const int c = i % vectors * kWidth, block = tile + i / vectors * p.block;
    const int from = max(block, begin), to = min(block + p.block, end);
    if (from >= to) continue;
    const int64_t bound = (int64_t{head} * p.max_blocks + block / p.block) * d + c;
    const bool goes_on = p.low != nullptr && from > block;
    Numbers<kWidth> low, high;
    if (goes_on) {
      low = Numbers<kWidth>::load(p.low + bound);
      high = Numbers<kWidth>::load(p.high + bound);
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        low.x[e] = INFINITY;
        high.x[e] = -INFINITY;
      }
    }
#pragma unroll 4
    for (int row = from; row < to; ++row) {
      const int64_t source = (first + row) * p.cols + column + c;
      const auto key = Numbers<kWidth>::load_fixed(p.k + source);
      const auto value = Numbers<kWidth>::load_fixed(p.v + source);
      T* at = sequence.rows.key<T>(head, row) + c;
      key.store(at);
      value.store(at + int64_t{sequence.rows.page_rows} * d);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        low.x[e] = fminf(low.x[e], key.x[e]);
        high.x[e] = fmaxf(high.x[e], key.x[e]);
      }
    }
    if (p.low == nullptr) continue;
    low.store(p.low + bound);
    high.store(p.high + bound);
  }
  if (gridDim.x > 1) return;  // other blocks still read n_rows: `advance` follows
  __syncthreads();
  if (threadIdx.x == 0) sequence.n_rows[head] = end;
}

__global__ void advance(int32_t* n_rows, int n_heads, int share) {
  const int h = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (h < n_heads) n_rows[h] += share;
}

}  // namespace

void CudaBackend::run(const AppendKv& op) {
  check(op);
  if (op.k.rows == 0) return;
  const int64_t share = op.k.rows / std::ssize(op.kv);
  for (size_t s = 0; s < op.kv.size(); s += kMaxSequences) {
    const auto batch = op.kv.subspan(s, std::min(kMaxSequences, op.kv.size() - s));
    const KvLayer& kv = batch[0];
    Params p{};
    int64_t most_heads = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      const int64_t n_heads = batch[i].n_kv_heads();
      most_heads = std::max(most_heads, n_heads);
      p.sequences[i] = {cache_rows(batch[i]), batch[i].n_rows.data, static_cast<int>(n_heads),
                        static_cast<int>(n_heads / (op.k.cols / kv.head_dim))};
    }
    p.k = static_cast<const bf16*>(op.k.data) + static_cast<int64_t>(s) * share * op.k.cols;
    p.v = static_cast<const bf16*>(op.v.data) + static_cast<int64_t>(s) * share * op.k.cols;
    p.cols = op.k.cols;
    p.share = static_cast<int>(share);
    p.block = op.bounds.block > 0 ? static_cast<int>(op.bounds.block) : 8;
    p.tile_rows = p.block * std::max(1, 64 / p.block);
    p.low = op.bounds.block > 0 ? op.bounds.min.data : nullptr;
    p.high = op.bounds.max.data;
    p.max_blocks = op.bounds.min.dim(1);
    // A single row is in one tile, wherever it falls.
    const unsigned n_tiles = share == 1 ? 1 : blocks_for(share, p.tile_rows) + 1;
    const dim3 grid(n_tiles, static_cast<unsigned>(most_heads),
                    static_cast<unsigned>(batch.size()));
    const auto kernel = kv.dtype != DType::kBF16 ? append<float, 1>
                        : kv.head_dim % 8 == 0   ? append<bf16, 8>
                                                 : append<bf16, 1>;
    launch("AppendKv", kernel, grid, kThreads, 0, stream_, p);
    if (n_tiles == 1) continue;
    for (const KvLayer& sequence : batch) {
      launch("AppendKv", advance, blocks_for(sequence.n_kv_heads(), 256), 256, 0, stream_,
             sequence.n_rows.data, static_cast<int>(sequence.n_kv_heads()),
             static_cast<int>(share));
    }
  }
}

}  // namespace ei::cuda
