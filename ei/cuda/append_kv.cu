#include <algorithm>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/e4m3_cache.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 128;

struct Params {
  struct Sequence {
    CacheRows rows;
    int32_t* n_rows;
    int n_heads;
    int copies;     // cache heads of one head of k
    bool bounded;   // pages hold key bounds
    int block;      // of the bounds; a thread takes its columns of so many rows
    int tile_rows;  // of a block of threads; a multiple of `block`
  };
  Sequence sequences[kMaxSequences];
  const bf16* k;  // [n_sequences * share, cols]
  const bf16* v;
  int64_t cols;
  int share;  // rows of each sequence
};

// blockIdx: tile of rows, KV head, sequence. Tiles are cut at absolute multiples of tile_rows, so
// that a bound belongs to one thread. kWidth columns a thread; a row in e4m3 is of neighbouring
// lanes.
template <class T, int kWidth>
__global__ void append(const __grid_constant__ Params p) {
  using Bound = std::conditional_t<sizeof(T) == 1, bf16, T>;
  const Params::Sequence& sequence = p.sequences[blockIdx.z];
  const int head = static_cast<int>(blockIdx.y), d = sequence.rows.d;
  if (head >= sequence.n_heads) return;
  const int begin = sequence.n_rows[head], end = begin + p.share;
  const int tile_rows = sequence.tile_rows, size = sequence.block;
  const int tile = (begin / tile_rows + static_cast<int>(blockIdx.x)) * tile_rows;
  const int64_t column = int64_t{head / sequence.copies} * d;
  const int64_t first = int64_t{blockIdx.z} * p.share - begin;  // row of k for cache row 0

  const int vectors = d / kWidth;
  for (int i = static_cast<int>(threadIdx.x); i < tile_rows / size * vectors; i += kThreads) {
    const int c = i % vectors * kWidth, block = tile + i / vectors * size;
    const int from = max(block, begin), to = min(block + size, end);
    if (from >= to) continue;
    Bound* bounds =
        sequence.bounded ? sequence.rows.lowest<Bound>(head, block / size) + c : nullptr;
    Numbers<kWidth> low, high;
    if (sequence.bounded && from > block) {
      low = Numbers<kWidth>::load(bounds);
      high = Numbers<kWidth>::load(bounds + sequence.rows.highest_offset());
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
      auto key = Numbers<kWidth>::load_fixed(p.k + source);
      auto value = Numbers<kWidth>::load_fixed(p.v + source);
      T* at = sequence.rows.key<T>(head, row) + c;
      T* value_at = at + int64_t{sequence.rows.first_value} * d;
      if constexpr (sizeof(T) == 1) {
        const float key_scale = round_to_cache<true>(key, *reinterpret_cast<uint2*>(at), vectors);
        const float value_scale =
            round_to_cache<false>(value, *reinterpret_cast<uint2*>(value_at), vectors);
        if (c == 0) {
          float* scale = sequence.rows.scale(head, row);
          scale[0] = key_scale;
          scale[sequence.rows.page_rows] = value_scale;
        }
      } else {
        key.store(at);
        value.store(value_at);
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        low.x[e] = fminf(low.x[e], key.x[e]);
        high.x[e] = fmaxf(high.x[e], key.x[e]);
      }
    }
    if (!sequence.bounded) continue;
    low.store(bounds);  // exact: they are numbers of keys
    high.store(bounds + sequence.rows.highest_offset());
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
    unsigned n_tiles = 1;  // a single row is in one tile, wherever it falls
    for (size_t i = 0; i < batch.size(); ++i) {
      const int64_t n_heads = batch[i].n_kv_heads();
      most_heads = std::max(most_heads, n_heads);
      const bool bounded = batch[i].layout.block > 0;
      const int block = bounded ? static_cast<int>(batch[i].layout.block) : 8;
      const int tile_rows = block * std::max(1, 64 / block);
      p.sequences[i] = {.rows = cache_rows(batch[i]),
                        .n_rows = batch[i].n_rows.data,
                        .n_heads = static_cast<int>(n_heads),
                        .copies = static_cast<int>(n_heads / (op.k.cols / kv.layout.head_dim)),
                        .bounded = bounded,
                        .block = block,
                        .tile_rows = tile_rows};
      if (share > 1) n_tiles = std::max(n_tiles, blocks_for(share, tile_rows) + 1);
    }
    p.k = static_cast<const bf16*>(op.k.data) + static_cast<int64_t>(s) * share * op.k.cols;
    p.v = static_cast<const bf16*>(op.v.data) + static_cast<int64_t>(s) * share * op.k.cols;
    p.cols = op.k.cols;
    p.share = static_cast<int>(share);
    const dim3 grid(n_tiles, static_cast<unsigned>(most_heads),
                    static_cast<unsigned>(batch.size()));
    const DType dtype = kv.layout.dtype;
    const auto kernel = dtype == DType::kFP8          ? append<e4m3, 8>
                        : dtype != DType::kBF16       ? append<float, 1>
                        : kv.layout.head_dim % 8 == 0 ? append<bf16, 8>
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
