#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ei/cuda/attention_tiles.h"
#include "ei/cuda/cache_rows.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/ptx.cuh"
#include "ei/ops/sparse_attention.h"

// What the kernels of prefill attention for Hopper share: their work items, and whose turn it is.
namespace ei::cuda {

inline constexpr int kConsumers = 2;  // warpgroups
inline constexpr int kPrefillThreads = 128 * (1 + kConsumers);
// Named barriers: whose turn the tensor cores are, a warpgroup's own, all consumers, all producers.
inline constexpr int kTurn = 1, kOwn = 3, kAllConsumers = 5, kProducers = 6;

// A block starts with 168 registers for each thread, 64512. What consumers take on has to be left
// by the producers: if it were more than that, they would wait for ever.
template <int kOfProducer, int kOfConsumer>
struct Registers {
  static constexpr int kProducer = kOfProducer, kConsumer = kOfConsumer;
  static_assert(128 * (kProducer + kConsumers * kConsumer) <= 168 * kPrefillThreads);
};

struct PrefillParams {
  ChunkTiles tiles;
  int32_t n_heads = 0;
  int32_t heads_per_kv = 0;
  View<const int32_t, 2> count;
  View<const int32_t, 3> index;
  CacheRows rows;
  int32_t block = 0;
  uint64_t map_base = 0;  // address of the cache maps' first row
  float scale_log2 = 0;   // softmax scale times log2 e
  bf16* out = nullptr;
  uint32_t* counter = nullptr;  // [2] next item, blocks done
};

// What the producer tells the other warps about an item.
struct Item {
  int32_t head = -1;  // the first; -1: no more
  int32_t n_heads = 0;
  QueryTile tile;
  KeyList keys;
};

// A position in a ring of kLength and the parity of its phase.
template <int kLength>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void next() {
    if (++stage == kLength) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Cache row of entry j of an item's keys.
__device__ inline int row_of(const PrefillParams& p, const Item& item, int j) {
  if (j >= item.keys.n_selected) return item.keys.own_row(j);
  const int kv_head = item.head / p.heads_per_kv;
  const int64_t slot =
      (static_cast<int64_t>(kv_head) * p.index.dims[1] + item.tile.segment) * p.index.dims[2] +
      j / p.block;
  return __ldg(p.index.data + slot) * p.block + j % p.block;
}

// Takes the next item, by a whole warp.
__device__ inline Item next_item(const PrefillParams& p) {
  const int of_tile = p.n_heads / p.heads_per_kv * p.tiles.head_tiles;
  const int n_items = p.tiles.n_tiles() * of_tile;
  Item item;
  while (true) {
    int next = 0;
    if (threadIdx.x % 32 == 0) next = static_cast<int>(atomicAdd(p.counter, 1));
    next = __shfl_sync(0xffffffffu, next, 0);
    if (next >= n_items) return item;
    item.tile = query_tile(p.tiles, p.tiles.n_tiles() - 1 - next / of_tile);
    if (item.tile.begin >= item.tile.end) continue;
    const int kv_head = next % of_tile / p.tiles.head_tiles;
    const int before = next % p.tiles.head_tiles * p.tiles.heads;  // of its heads
    item.head = kv_head * p.heads_per_kv + before;
    item.n_heads = min(p.tiles.heads, p.heads_per_kv - before);
    const int64_t slot = int64_t{kv_head} * p.count.dims[1] + item.tile.segment;
    item.keys = key_list(item.tile, __ldg(p.count.data + slot), p.block);
    return item;
  }
}

// The last block to run out of items makes the counters ready for the next launch.
__device__ inline void no_more_items(const PrefillParams& p) {
  if (threadIdx.x == 0 && atomicInc(p.counter + 1, gridDim.x - 1) == gridDim.x - 1)
    atomicExch(p.counter, 0);
}

// Where a thread of a consuming warpgroup stands in a tile: it has two rows, 8 apart.
struct ConsumerRows {
  int group, lane, first;  // warpgroup; of the warp the lane, and its first row
  int of_head[2];          // counted from their heads' first

  __device__ explicit ConsumerRows(const ChunkTiles& tiles)
      : group(static_cast<int>(threadIdx.x / 128) - 1),
        lane(static_cast<int>(threadIdx.x % 32)),
        first(64 * group + static_cast<int>(threadIdx.x % 128 / 32) * 16),
        of_head{(first + lane / 4) % tiles.head_rows, (first + lane / 4 + 8) % tiles.head_rows} {}
};

// How far these rows see an item's keys.
struct SeenKeys {
  int limit[2];
  int n_whole;  // tiles that every row of the warpgroup sees whole

  __device__ SeenKeys(const KeyList& keys, const ChunkTiles& tiles, const ConsumerRows& rows)
      : limit{keys.limit() + rows.of_head[0], keys.limit() + rows.of_head[1]},
        n_whole((keys.limit() + tiles.least_row(64 * rows.group)) / kTileKeys) {}
};

// A warp is done with a stage of a ring.
__device__ inline void release(uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}

// Hides what this thread's two rows may not see: list entries from `limit` on.
__device__ inline void mask(float (&s)[64], int first_key, const int (&limit)[2]) {
  const int column = first_key + static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (column + 8 * j + e >= limit[0]) s[4 * j + e] = -INFINITY;
      if (column + 8 * j + e >= limit[1]) s[4 * j + 2 + e] = -INFINITY;
    }
  }
}

// Divides by the sums and writes the rows of this warp. `tile`: room in shared memory for 128 rows,
// [kD / 64][128][128 bytes], of which the warp uses its own.
template <int kD>
__device__ void store_rows(const PrefillParams& p, const Item& item, unsigned char* tile,
                           const float (&o)[kD / 2], float (&sum)[2], int first_row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    const float inverse = 1.0f / sum[r];
    const int row = first_row + lane / 4 + 8 * r;
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
      unsigned char* at = tile + (j / 8 * kTileQueries + row) * 128 + (j % 8 ^ row % 8) * 16;
      reinterpret_cast<uint32_t*>(at)[lane % 4] =
          pack_bf16(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
    }
  }
  __syncwarp();
  constexpr int kChunks = kD / 8;  // of 16 bytes in a row
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = first_row + i / kChunks, j = i % kChunks;
    const int head = row / p.tiles.head_rows;
    const int position = item.tile.first + row % p.tiles.head_rows;
    if (head >= item.n_heads || position < item.tile.begin || position >= item.tile.end) continue;
    const unsigned char* at = tile + (j / 8 * kTileQueries + row) * 128 + (j % 8 ^ row % 8) * 16;
    const int64_t to =
        (static_cast<int64_t>(position - p.tiles.begin) * p.n_heads + item.head + head) * kD;
    *reinterpret_cast<uint4*>(p.out + to + 8 * j) = *reinterpret_cast<const uint4*>(at);
  }
}

// Thread blocks: one for each multiprocessor, if there are as many items.
inline unsigned prefill_blocks(const PrefillParams& p, int64_t n_sms) {
  const int64_t of_tile = int64_t{p.n_heads} / p.heads_per_kv * p.tiles.head_tiles;
  return static_cast<unsigned>(std::min(n_sms, p.tiles.n_tiles() * of_tile));
}

// All that follows from an op alone.
inline PrefillParams prefill_params(const SparseAttention& op) {
  const int64_t n_heads = op.q.cols / op.kv.layout.head_dim;
  const int64_t group = n_heads / op.kv.n_kv_heads();
  return {.tiles = chunk_tiles(op.begin, op.q.rows, op.segment, group),
          .n_heads = static_cast<int32_t>(n_heads),
          .heads_per_kv = static_cast<int32_t>(group),
          .count = op.selection.count,
          .index = op.selection.index,
          .rows = cache_rows(op.kv),
          .block = static_cast<int32_t>(op.block),
          .scale_log2 = op.scale * static_cast<float>(M_LOG2E),
          .out = static_cast<bf16*>(op.out.data)};
}

}  // namespace ei::cuda
