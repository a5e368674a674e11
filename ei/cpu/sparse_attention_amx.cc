#include <algorithm>
#include <limits>
#include <vector>

#include "ei/cpu/amx.h"
#include "ei/cpu/attention_item.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/sparse_attention_amx.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/amx-inl.h"
#include "ei/cpu/tile-inl.h"

#ifndef EI_CPU_SPARSE_ATTENTION_AMX_ONCE_
#define EI_CPU_SPARSE_ATTENTION_AMX_ONCE_
namespace ei::cpu {

// Rows that meet a tile of keys while their scores are in L1.
constexpr int64_t kStripRows = 2 * kAmxRows;
// Products of probabilities with kTileKeys values are so many registers deep.
constexpr int64_t kKeyTiles = kTileKeys / kAmxDepth;

// What a thread needs for items of at most `rows`; the first four in registers' order.
struct AttentionMemory {
  uint16_t *queries, *keys, *values, *probabilities;
  float *score, *out, *top, *sum;
  uint16_t* rows;  // keys or values, where they are stored in another way: kTileKeys of them
  float* numbers;

  // Divides `memory` up, if there is some, and returns how much is needed.
  int64_t divide(char* memory, int64_t n_rows, int64_t d) {
    int64_t n = 0;
    const auto take = [&]<class T>(T*& piece, int64_t count) {
      piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + n);
      n += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
    };
    const int64_t deep = (d + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
    const int64_t tall = (n_rows + kStripRows - 1) / kStripRows * kStripRows;
    take(queries, tall * deep);
    take(keys, kTileKeys * deep);
    take(values, kTileKeys * padded(d));
    take(probabilities, kStripRows * kTileKeys);
    take(score, kStripRows * kTileKeys);
    take(out, tall * padded(d));
    take(top, tall);
    take(sum, tall);
    take(rows, kTileKeys * deep);
    take(numbers, deep);
    return n;
  }
};

}  // namespace ei::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// n rows of the cache as bf16, padded with zeros to `width` numbers: where they are, or copies.
template <class Unit>
void round_rows(int64_t n, int64_t d, int64_t width, DType type, const char* const* from,
                const AttentionMemory& memory, const uint16_t** rows) {
  for (int64_t j = 0; j < n; ++j) {
    if (type == DType::kBF16 && d == width) {
      rows[j] = reinterpret_cast<const uint16_t*>(from[j] + PageLayout::numbers_at(type));
      continue;
    }
    uint16_t* row = memory.rows + j * width;
    widen(from[j], type, 0, d, memory.numbers);
    round_row<Unit>(memory.numbers, d, width, row);
    rows[j] = row;
  }
}

// Keys as columns of the scores' second factor; those behind the n-th mean nothing.
template <class Unit>
void pack_keys(int64_t n, int64_t d, DType type, const char* const* keys,
               const AttentionMemory& memory) {
  const int64_t n_tiles = (d + kAmxDepth - 1) / kAmxDepth;
  const uint16_t* rows[kTileKeys];
  round_rows<Unit>(n, d, n_tiles * kAmxDepth, type, keys, memory, rows);
  const int64_t wide = (n + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
  std::fill(rows + n, rows + wide, rows[n - 1]);
  for (int64_t j = 0; j < wide; j += kAmxRows)
    for (int64_t t = 0; t < n_tiles; ++t)
      pack_pairs(
          rows + j, t * kAmxDepth,
          reinterpret_cast<uint32_t*>(memory.keys + (j / kAmxRows * n_tiles + t) * kAmxTile));
}

// Values as rows of the output's second factor, zeros behind the n-th.
template <class Unit>
void pack_values(int64_t n, int64_t d, DType type, const char* const* values,
                 const AttentionMemory& memory) {
  alignas(64) static constexpr uint16_t kZeros[kAmxRows] = {};
  const int64_t width = padded(d);
  const uint16_t* rows[kTileKeys];
  round_rows<Unit>(n, d, width, type, values, memory, rows);
  const int64_t deep = (n + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
  for (int64_t j = 0; j < deep; j += 2) {
    for (int64_t c = 0; c < width; c += kAmxRows) {
      uint16_t* tile = memory.values + (c / kAmxRows * kKeyTiles + j / kAmxDepth) * kAmxTile;
      interleave(j < n ? rows[j] + c : kZeros, j + 1 < n ? rows[j + 1] + c : kZeros,
                 reinterpret_cast<uint32_t*>(tile + j % kAmxDepth * kAmxRows));
    }
  }
}

// 2^x for x <= 0 as exp2_negative() has it, with a relative error below 8e-5: a fiftieth of
// what rounding to bf16 costs.
HWY_INLINE V32 rough_exp2(V32 x) {
  const F32 d;
  return exp2_by(
      [&](V32 r) HWY_ATTR {
        V32 p = hn::MulAdd(hn::Set(d, 0.05517166f), r, hn::Set(d, 0.24261112f));
        p = hn::MulAdd(p, r, hn::Set(d, 0.69326099f));
        return hn::MulAdd(p, r, hn::Set(d, 0.99992807f));
      },
      x);
}

// Online softmax of one row of a tile, in units of log 2 once scores are multiplied by `scale`: of
// n scores the row sees the first n_seen. Writes probabilities relative to the maximum so far, row
// i of the registers from `to` on, and returns the factor that makes older ones so.
template <class Unit>
HWY_INLINE float softmax_row(int64_t n_seen, int64_t n, float scale, float* HWY_RESTRICT s,
                             int64_t i, uint16_t* HWY_RESTRICT to, float& top, float& sum) {
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto at = [&](int64_t c) {
    return to + c / kAmxDepth * kAmxTile + i * kAmxDepth + c % kAmxDepth;
  };
  if (n_seen < n) std::fill(s + n_seen, s + n, -std::numeric_limits<float>::infinity());
  auto most = hn::LoadU(df, s);
  for (int64_t c = lanes; c < n; c += lanes) most = hn::Max(most, hn::LoadU(df, s + c));
  const auto by = hn::Set(df, scale);
  const float factor = raise_top(hn::Mul(most, by), top);
  auto total = hn::Zero(df);
  const auto probability = [&](int64_t c) {
    return rough_exp2(hn::MulSub(hn::LoadU(df, s + c), by, hn::Set(df, top)));
  };
  for (int64_t c = 0; c < n; c += 2 * lanes) {  // n is a multiple of 32
    const auto p = probability(c), q = probability(c + lanes);
    total = hn::Add(total, hn::Add(p, q));
    store_rounded<Unit>(df, p, q, at(c));
  }
  for (int64_t c = n_seen; c < n; ++c) *at(c) = 0;
  sum = sum * factor + hn::GetLane(hn::SumOfLanes(df, total));
  return factor;
}

HWY_INLINE void scale_row(float factor, int64_t n, float* HWY_RESTRICT row) {
  const F32 d;
  const auto by = hn::Set(d, factor);
  for (int64_t c = 0; c < n; c += static_cast<int64_t>(hn::Lanes(d)))
    hn::StoreU(hn::Mul(hn::LoadU(d, row + c), by), d, row + c);
}

// As the kernel without tiles: online softmax over tiles of keys, with the running maximum and sum
// of every row beside its unnormalised output.
template <class Unit>
void attend(const SparseAttention& op, const AttentionItem& item, const AttentionMemory& memory) {
  const int64_t d = op.kv.layout.head_dim, width = padded(d), n_heads = op.q.cols / d;
  const int64_t group = n_heads / op.kv.n_kv_heads(), n_rows = item.n_tokens * group;
  const int64_t n_tiles = (d + kAmxDepth - 1) / kAmxDepth;
  const int64_t tall = (n_rows + kAmxRows - 1) / kAmxRows * kAmxRows;
  const int64_t value_offset = op.kv.layout.first_value() * op.kv.layout.row_bytes();
  const char* keys[kTileKeys];

  const View<float, 2> queries = rows_of(op.q);
  const float scale = op.scale * 1.44269504f;  // that of scores, in units of log 2
  for (int64_t r = 0; r < tall; ++r) {
    const float* from = nullptr;
    if (r < n_rows)
      from = queries[item.first + r / group].data + (item.kv_head * group + r % group) * d;
    for (int64_t t = 0; t < n_tiles; ++t) {
      const int64_t left = from != nullptr ? std::min(kAmxDepth, d - t * kAmxDepth) : 0;
      round_row<Unit>(
          left > 0 ? from + t * kAmxDepth : nullptr, left, kAmxDepth,
          memory.queries + (r / kAmxRows * n_tiles + t) * kAmxTile + r % kAmxRows * kAmxDepth);
    }
  }
  std::fill_n(memory.out, tall * width, 0.0f);
  std::fill_n(memory.top, tall, -std::numeric_limits<float>::infinity());
  std::fill_n(memory.sum, tall, 0.0f);

  // Row r sees the keys before seen(r) of the sequence: the past and, causally, its segment.
  const int64_t first_seen = item.n_past + op.begin + item.first - item.segment_begin + 1;
  const auto seen = [&](int64_t r) { return first_seen + r / group; };
  const int64_t n_keys = seen(n_rows - 1);

  Unit::begin();
  for (int64_t j = 0; j < n_keys; j += kTileKeys) {
    const int64_t n_tile = std::min(kTileKeys, n_keys - j);
    find_keys(op, item, j, n_tile, keys);
    pack_keys<Unit>(n_tile, d, op.kv.layout.dtype, keys, memory);
    for (int64_t i = 0; i < n_tile; ++i) keys[i] += value_offset;
    pack_values<Unit>(n_tile, d, op.kv.layout.dtype, keys, memory);
    for (int64_t r = 0; r < n_rows; r += kStripRows) {
      const int64_t last = std::min(r + kStripRows, n_rows);
      const int64_t n = std::min(kTileKeys, seen(last - 1) - j);
      if (n <= 0) continue;
      const int64_t columns = (n + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
      const int64_t m = (last - r + kAmxRows - 1) / kAmxRows;
      const uint16_t* q = memory.queries + r * n_tiles * kAmxDepth;
      for (int64_t c = 0; c < columns; c += 2 * kAmxRows)
        tile_product<Unit>(m, 2, n_tiles, q, n_tiles * kAmxTile,
                           memory.keys + c * n_tiles * kAmxDepth, n_tiles * kAmxTile,
                           memory.score + c, kTileKeys, false);
      for (int64_t i = 0; i < last - r; ++i) {  // what is in the rows behind is nobody's
        const float factor =
            softmax_row<Unit>(std::clamp<int64_t>(seen(r + i) - j, 0, n), columns, scale,
                              memory.score + i * kTileKeys, i % kAmxRows,
                              memory.probabilities + i / kAmxRows * kKeyTiles * kAmxTile,
                              memory.top[r + i], memory.sum[r + i]);
        if (factor != 1) scale_row(factor, width, memory.out + (r + i) * width);
      }
      for (int64_t c = 0; c < width; c += 2 * kAmxRows)
        tile_product<Unit>(m, std::min<int64_t>(2, (width - c) / kAmxRows), columns / kAmxDepth,
                           memory.probabilities, kKeyTiles * kAmxTile,
                           memory.values + c / kAmxRows * kKeyTiles * kAmxTile,
                           kKeyTiles * kAmxTile, memory.out + r * width + c, width, true);
    }
  }
  Unit::end();

  const View<float, 2> context = rows_of(op.out);
  for (int64_t r = 0; r < n_rows; ++r) {
    float* to = context[item.first + r / group].data + (item.kv_head * group + r % group) * d;
    const float* from = memory.out + r * width;
    for (int64_t c = 0; c < d; ++c) to[c] = from[c] / memory.sum[r];
  }
}

void attend_item(Tiles tiles, const SparseAttention& op, const AttentionItem& item,
                 const AttentionMemory& memory) {
  if (tiles == Tiles::kAmx) return attend<Amx>(op, item, memory);
  attend<EmulatedAmx>(op, item, memory);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {
HWY_EXPORT(attend_item);
}  // namespace

void CpuBackend::attend_tiles(const SparseAttention& op, const std::vector<AttentionItem>& items,
                              int64_t most_rows) {
  const int64_t d = op.kv.layout.head_dim;
  AttentionMemory memory;
  const int64_t per_thread = memory.divide(nullptr, most_rows, d);
  char* scratch = scratch_.get<char>(n_threads_ * per_thread);
  parallel_for(n_threads_, static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    AttentionMemory mine;
    mine.divide(scratch + thread * per_thread, most_rows, d);
    HWY_DYNAMIC_DISPATCH(attend_item)(tiles_, op, items[static_cast<size_t>(i)], mine);
  });
}

}  // namespace ei::cpu
#endif
