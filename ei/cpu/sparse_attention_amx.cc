#include <hwy/cache_control.h>

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
#include "ei/cpu/amx_strip-inl.h"
#include "ei/cpu/tile-inl.h"

#ifndef EI_CPU_SPARSE_ATTENTION_AMX_ONCE_
#define EI_CPU_SPARSE_ATTENTION_AMX_ONCE_
namespace ei::cpu {

// Rows that meet a tile of keys while their scores are in L1, and keys of a tile: both products'
// factors and results are then 40 KiB at d 64.
constexpr int64_t kStripRows = 2 * kAmxRows;
constexpr int64_t kStripKeys = 64;
constexpr int64_t kKeyTiles = kStripKeys / kAmxDepth;  // registers they are deep

// What a thread needs for items of at most `rows`. Scores, probabilities and outputs lie with keys
// or dimensions as rows and with queries as columns, strip by strip: what a softmax does to a query
// it does in a lane, and keys go into the unit as they lie in the cache.
struct AttentionMemory {
  uint16_t *queries, *values, *probabilities;  // in registers' order
  float *score, *out, *top, *sum;
  uint16_t *rows, *zeros;  // keys or values that are stored in another way; one of nothing
  float* numbers;

  // Divides `memory` up, if there is some, and returns how much is needed. Factors have `parts`: of
  // two the second is what the first lacks of floats, and lies behind it.
  int64_t divide(char* memory, int64_t n_rows, int64_t d, int64_t parts) {
    int64_t n = 0;
    const auto take = [&]<class T>(T*& piece, int64_t count) {
      piece = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + n);
      n += (count * int64_t{sizeof(T)} + 63) / 64 * 64;
    };
    const int64_t deep = (d + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
    const int64_t tall = (n_rows + kStripRows - 1) / kStripRows * kStripRows;
    take(queries, parts * tall * deep);
    take(values, parts * kStripKeys * padded(d));
    take(probabilities, parts * kStripRows * kStripKeys);
    take(score, kStripRows * kStripKeys);
    take(out, tall * padded(d));
    take(top, tall);
    take(sum, tall);
    take(rows, parts * kStripKeys * deep);
    take(zeros, parts * deep);
    take(numbers, std::max(deep, kStripRows * padded(d)));
    return n;
  }
};

}  // namespace ei::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// What a product takes of n floats, with zeros up to `width`: bf16, or with kHalves what these lack
// behind them.
template <class Unit, bool kHalves>
HWY_INLINE void factor_row(const float* from, int64_t n, int64_t width, uint16_t* to) {
  if constexpr (kHalves) {
    split_row(from, n, width, to);
  } else {
    round_row<Unit>(from, n, width, to);
  }
}

// n rows of the cache as factors of `width` numbers: where they are, or copies.
template <class Unit, bool kHalves>
void find_rows(int64_t n, int64_t d, int64_t width, DType type, const char* const* from,
               const AttentionMemory& memory, const uint16_t** rows) {
  for (int64_t j = 0; j < n; ++j) {
    if (!kHalves && type == DType::kBF16 && d == width) {
      rows[j] = reinterpret_cast<const uint16_t*>(from[j] + PageLayout::numbers_at(type));
      continue;
    }
    uint16_t* row = memory.rows + j * width * (kHalves ? 2 : 1);
    const float* numbers = memory.numbers;
    if (type == DType::kF32) {
      numbers = reinterpret_cast<const float*>(from[j] + PageLayout::numbers_at(type));
    } else {
      widen(from[j], type, 0, d, memory.numbers);
    }
    factor_row<Unit, kHalves>(numbers, d, width, row);
    rows[j] = row;
  }
}

// n values, and zeros up to `wide`, as columns of the output's first factor.
template <class Unit, bool kHalves>
void pack_values(int64_t n, int64_t wide, int64_t d, DType type, const char* const* values,
                 const AttentionMemory& memory) {
  const int64_t width = padded(d);
  const uint16_t* rows[kStripKeys];
  find_rows<Unit, kHalves>(n, d, width, type, values, memory, rows);
  std::fill(rows + n, rows + wide, memory.zeros);
  uint16_t* to = memory.values;
  for (int64_t part = 0; part < (kHalves ? 2 : 1); ++part, to += kStripKeys * width)
    for (int64_t j = 0; j < wide; j += kAmxDepth)
      for (int64_t c = 0; c < d; c += kAmxRows)
        transpose(rows + j, part * width + c,
                  to + (c / kAmxRows * kKeyTiles + j / kAmxDepth) * kAmxTile);
}

// n keys, and zeros up to `wide`, as rows of the scores' first factor: where they are, if 16 of
// them follow each other, or copies.
template <class Unit, bool kHalves>
void find_tiles(int64_t n, int64_t wide, int64_t d, DType type, const char* const* keys,
                const AttentionMemory& memory, AmxRowsAt* tiles) {
  const int64_t deep = (d + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
  const int64_t all = deep * (kHalves ? 2 : 1);
  const uint16_t* rows[kStripKeys];
  find_rows<Unit, kHalves>(n, d, deep, type, keys, memory, rows);
  std::fill(rows + n, rows + wide, memory.zeros);
  for (int64_t j = 0; j < wide; j += kAmxRows) {
    const int64_t stride = rows[j + 1] - rows[j];
    bool regular = true;
    for (int64_t i = 2; i < kAmxRows; ++i) regular &= rows[j + i] - rows[j + i - 1] == stride;
    if (!regular)
      for (int64_t i = 0; i < kAmxRows; ++i)
        if (uint16_t* const to = memory.rows + (j + i) * all; rows[j + i] != to)
          std::copy_n(rows[j + i], all, to);
    tiles[j / kAmxRows] = {regular ? rows[j] : memory.rows + j * all, kAmxDepth,
                           (regular ? stride : all) * int64_t{sizeof(uint16_t)}, deep};
  }
}

// 2^x for x <= 8 with a relative error below 8e-5: a fiftieth of what bf16 may cost.
HWY_INLINE V32 rough_exp2(V32 x) {
  const F32 d;
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(F32()) == 16) {  // by instructions for what x lies above an integer
    const V32 r{_mm512_reduce_ps(x.raw, 1)};
    V32 p = hn::MulAdd(hn::Set(d, 0.07802455f), r, hn::Set(d, 0.22606719f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.6958335f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.99992526f));
    return V32{_mm512_scalef_ps(p.raw, x.raw)};
  }
#endif
  return exp2_by(
      [&](V32 r) HWY_ATTR {
        V32 p = hn::MulAdd(hn::Set(d, 0.05517166f), r, hn::Set(d, 0.24261112f));
        p = hn::MulAdd(p, r, hn::Set(d, 0.69326099f));
        return hn::MulAdd(p, r, hn::Set(d, 0.99992807f));
      },
      x);
}

// The same with an error below 2e-7, or 3e-6 without these instructions.
HWY_INLINE V32 fine_exp2(V32 x) {
#if HWY_TARGET <= HWY_AVX3
  const F32 d;
  if constexpr (hn::MaxLanes(F32()) == 16) {
    const V32 r{_mm512_reduce_ps(x.raw, 1)};
    V32 p = hn::MulAdd(hn::Set(d, 0.00187757669f), r, hn::Set(d, 0.00898934063f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.0558263175f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.240153611f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.693153083f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.99999994f));
    return V32{_mm512_scalef_ps(p.raw, x.raw)};
  }
#endif
  return exp2_negative(x);
}

// A query's maximum is raised once a score is so far above it: probabilities relative to it may be
// greater than one, which costs a float no precision, and outputs are rarely rescaled.
constexpr float kSlack = 8;

// Online softmax of a strip's scores s [n, kStripRows], n a multiple of 32, in units of log 2 once
// they are multiplied by `scale`. With kCausal, query i sees the first seen[i]. Writes
// probabilities relative to the maximum so far and makes older outputs [width, kStripRows] so.
// Probabilities are cut to bf16 and sums are those of what is left, so that what they all lose on
// average cancels, and the rest is what rounding to nearest would cost. With kHalves they are
// rounded to nearest, and what they then lack is the probabilities' second part.
template <bool kCausal, bool kHalves>
void softmax(int64_t n, float scale, const int32_t* seen, const float* HWY_RESTRICT s,
             uint32_t* HWY_RESTRICT probabilities, int64_t width, float* HWY_RESTRICT out,
             float* HWY_RESTRICT top, float* HWY_RESTRICT sum) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const hn::RebindToUnsigned<F32> du;
  const auto by = hn::Set(d, scale);
  const auto kept = hn::Set(du, 0xFFFF0000u);
  for (int64_t c = 0; c < kStripRows; c += static_cast<int64_t>(hn::Lanes(d))) {
    const auto score = [&](int64_t k) HWY_ATTR {
      const auto x = hn::LoadU(d, s + k * kStripRows + c);
      if constexpr (!kCausal) return x;
      const auto visible = hn::Lt(hn::Set(di, static_cast<int32_t>(k)), hn::LoadU(di, seen + c));
      return hn::IfThenElse(hn::RebindMask(d, visible), x,
                            hn::Set(d, -std::numeric_limits<float>::infinity()));
    };
    V32 most[4];
    HWY_UNROLL(4)
    for (int64_t k = 0; k < 4; ++k) most[k] = score(k);
    for (int64_t k = 4; k < n; k += 4) HWY_UNROLL(4)
    for (int64_t u = 0; u < 4; ++u) most[u] = hn::Max(most[u], score(k + u));
    const auto highest = hn::Mul(hn::Max(hn::Max(most[0], most[1]), hn::Max(most[2], most[3])), by);
    auto over = hn::LoadU(d, top + c), total = hn::LoadU(d, sum + c), other = hn::Zero(d);
    const auto raised = hn::Gt(highest, hn::Add(over, hn::Set(d, kSlack)));
    if (!hn::AllFalse(d, raised)) {
      const auto factor =
          hn::IfThenElse(raised, exp2_negative(hn::Sub(over, highest)), hn::Set(d, 1.0f));
      over = hn::IfThenElse(raised, highest, over);
      hn::StoreU(over, d, top + c);
      total = hn::Mul(total, factor);
      for (int64_t i = 0; i < width; ++i) {
        float* const row = out + i * kStripRows + c;
        hn::StoreU(hn::Mul(hn::LoadU(d, row), factor), d, row);
      }
    }
    uint32_t* const to = probabilities + c / kAmxRows * kKeyTiles * kAmxTile / 2 + c % kAmxRows;
    if constexpr (kHalves) {
      const auto half = hn::Set(du, 0x8000u);
      const auto rounded = [&](V32 x) HWY_ATTR {
        return hn::And(hn::Add(hn::BitCast(du, x), half), kept);
      };
      HWY_UNROLL(2)
      for (int64_t k = 0; k < n; k += 2) {
        const V32 p = fine_exp2(hn::MulSub(score(k), by, over));
        const V32 q = fine_exp2(hn::MulSub(score(k + 1), by, over));
        total = hn::Add(total, p);
        other = hn::Add(other, q);
        const auto even = rounded(p), odd = rounded(q);
        uint32_t* const pairs = to + k / 2 * kAmxRows;
        hn::StoreU(hn::Or(hn::ShiftRight<16>(even), odd), du, pairs);
        const auto even_rest = rounded(hn::Sub(p, hn::BitCast(d, even)));
        const auto odd_rest = rounded(hn::Sub(q, hn::BitCast(d, odd)));
        hn::StoreU(hn::Or(hn::ShiftRight<16>(even_rest), odd_rest), du,
                   pairs + kStripRows * kStripKeys / 2);
      }
    } else {
      const auto probability = [&](int64_t k) HWY_ATTR {
        return hn::And(hn::BitCast(du, rough_exp2(hn::MulSub(score(k), by, over))), kept);
      };
      HWY_UNROLL(2)
      for (int64_t k = 0; k < n; k += 2) {
        const auto even = probability(k), odd = probability(k + 1);
        total = hn::Add(total, hn::BitCast(d, even));
        other = hn::Add(other, hn::BitCast(d, odd));
        hn::StoreU(hn::Or(hn::ShiftRight<16>(even), odd), du, to + k / 2 * kAmxRows);
      }
    }
    hn::StoreU(hn::Add(total, other), d, sum + c);
  }
}

// Outputs [d, kStripRows] over their queries' sums, query by query.
void finish_strip(int64_t d, const float* HWY_RESTRICT out, const float* HWY_RESTRICT sum,
                  float* HWY_RESTRICT to) {
  const int64_t width = padded(d);
#if HWY_TARGET == HWY_SCALAR
  for (int64_t r = 0; r < kStripRows; ++r)
    for (int64_t c = 0; c < d; ++c) to[r * width + c] = out[c * kStripRows + r] / sum[r];
#else
  const hn::FixedTag<float, 4> d4;
  for (int64_t r = 0; r < kStripRows; r += 4) {
    const auto by = hn::Div(hn::Set(d4, 1.0f), hn::LoadU(d4, sum + r));
    const auto row = [&](int64_t c)
                         HWY_ATTR { return hn::Mul(hn::LoadU(d4, out + c * kStripRows + r), by); };
    for (int64_t c = 0; c < width; c += 4)
      store_columns<float>(row(c), row(c + 1), row(c + 2), row(c + 3), width, to + r * width + c);
  }
#endif
}

// As the kernel without tiles: online softmax over tiles of keys, with the running maximum and sum
// of every row beside its unnormalised output.
template <class Unit, bool kHalves>
void attend(const SparseAttention& op, const AttentionItem& item, const AttentionMemory& memory) {
  const int64_t d = op.kv.layout.head_dim, width = padded(d), n_heads = op.q.cols / d;
  const int64_t group = n_heads / op.kv.n_kv_heads(), n_rows = item.n_tokens * group;
  const int64_t depth = (d + kAmxDepth - 1) / kAmxDepth, deep = depth * kAmxDepth;
  const int64_t tall = (n_rows + kStripRows - 1) / kStripRows * kStripRows;
  const int64_t row_bytes = op.kv.layout.row_bytes();
  const int64_t value_offset = op.kv.layout.first_value() * row_bytes;
  const char *keys[kStripKeys], *values[kStripKeys];
  AmxRowsAt tiles[kStripKeys / kAmxRows];

  const View<float, 2> queries = rows_of(op.q);
  const float scale = op.scale * 1.44269504f;  // that of scores, in units of log 2
  constexpr int64_t kParts = kHalves ? 2 : 1;
  std::fill_n(memory.zeros, kParts * deep, uint16_t{0});
  for (int64_t r = 0; r < tall; r += kAmxRows) {
    const uint16_t* rows[kAmxRows];
    for (int64_t i = 0; i < kAmxRows; ++i) {
      const int64_t token = item.first + (r + i) / group;
      const int64_t head = item.kv_head * group + (r + i) % group;
      uint16_t* const row = memory.rows + i * kParts * deep;
      rows[i] = r + i < n_rows ? row : memory.zeros;
      if (r + i < n_rows) factor_row<Unit, kHalves>(queries[token].data + head * d, d, deep, row);
    }
    for (int64_t t = 0; t < kParts * depth; ++t) {
      const int64_t at = t / depth * tall * deep + r * deep + t % depth * kAmxTile;
      pack_pairs(rows, t * kAmxDepth, reinterpret_cast<uint32_t*>(memory.queries + at));
    }
  }
  std::fill_n(memory.out, tall * width, 0.0f);
  std::fill_n(memory.top, tall, -std::numeric_limits<float>::infinity());
  std::fill_n(memory.sum, tall, 0.0f);

  // Row r sees the keys before seen(r) of the sequence: the past and, causally, its segment.
  const int64_t first_seen = item.n_past + op.begin + item.first - item.segment_begin + 1;
  const auto seen = [&](int64_t r) { return first_seen + std::min(r, n_rows - 1) / group; };
  const int64_t n_keys = seen(n_rows - 1);

  const auto find = [&](int64_t j) {  // keys of the tile that begins with key j
    const int64_t n = std::clamp<int64_t>(n_keys - j, 0, kStripKeys);
    find_keys(op, item, j, n, keys);
    return n;
  };
  Unit::begin();
  for (int64_t j = 0, n_tile = find(0), n_next; j < n_keys; j += kStripKeys, n_tile = n_next) {
    const int64_t wide = (n_tile + kAmxDepth - 1) / kAmxDepth * kAmxDepth;
    for (int64_t i = 0; i < n_tile; ++i) values[i] = keys[i] + value_offset;
    pack_values<Unit, kHalves>(n_tile, wide, d, op.kv.layout.dtype, values, memory);
    find_tiles<Unit, kHalves>(n_tile, wide, d, op.kv.layout.dtype, keys, memory, tiles);
    n_next = find(j + kStripKeys);  // fetched while this one is worked on, some for every strip
    for (int64_t r = 0; r < n_rows; r += kStripRows) {
      for (int64_t i = n_next * r / tall; i < n_next * (r + kStripRows) / tall; ++i)
        for (int64_t at = 0; at < row_bytes; at += 64) {
          hwy::Prefetch(keys[i] + at);
          hwy::Prefetch(keys[i] + value_offset + at);
        }
      const int64_t n = std::min(kStripKeys, seen(r + kStripRows - 1) - j);
      if (n <= 0) continue;
      const int64_t n_deep = (n + kAmxDepth - 1) / kAmxDepth, columns = n_deep * kAmxDepth;
      float* const out = memory.out + r * width;
      multiply_by_pair<Unit, kHalves>(
          columns / kAmxRows, depth, [&](int64_t i) { return tiles[i]; },
          {memory.queries + r * deep, depth * kAmxTile, tall * deep}, memory.score, false);
      auto* const pairs = reinterpret_cast<uint32_t*>(memory.probabilities);
      int32_t visible[kStripRows];
      const bool causal = seen(r) < j + columns;
      for (int64_t i = 0; causal && i < kStripRows; ++i)
        visible[i] = static_cast<int32_t>(std::clamp<int64_t>(seen(r + i) - j, 0, columns));
      const auto take = causal ? softmax<true, kHalves> : softmax<false, kHalves>;
      take(columns, scale, visible, memory.score, pairs, width, out, memory.top + r,
           memory.sum + r);
      multiply_by_pair<Unit, kHalves>(
          width / kAmxRows, n_deep,
          [&](int64_t i) {
            return AmxRowsAt{memory.values + i * kKeyTiles * kAmxTile, kAmxTile, 64,
                             kStripKeys * width};
          },
          {memory.probabilities, kKeyTiles * kAmxTile, kStripRows * kStripKeys}, out, true);
    }
  }
  Unit::end();

  const View<float, 2> context = rows_of(op.out);
  for (int64_t r = 0; r < n_rows; r += kStripRows) {
    finish_strip(d, memory.out + r * width, memory.sum + r, memory.numbers);
    for (int64_t i = r; i < std::min(r + kStripRows, n_rows); ++i)
      std::copy_n(memory.numbers + (i - r) * width, d,
                  context[item.first + i / group].data + (item.kv_head * group + i % group) * d);
  }
}

void attend_item(Tiles tiles, bool halves, const SparseAttention& op, const AttentionItem& item,
                 const AttentionMemory& memory) {
  const auto with = [&]<class Unit>(Unit) {
    halves ? attend<Unit, true>(op, item, memory) : attend<Unit, false>(op, item, memory);
  };
  tiles == Tiles::kAmx ? with(Amx()) : with(EmulatedAmx());
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
  const bool halves = math_ == Math::kF32;
  const int64_t parts = halves ? 2 : 1;
  AttentionMemory memory;
  const int64_t per_thread = memory.divide(nullptr, most_rows, d, parts);
  char* scratch = scratch_.get<char>(n_threads_ * per_thread);
  parallel_for(n_threads_, static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    AttentionMemory mine;
    mine.divide(scratch + thread * per_thread, most_rows, d, parts);
    HWY_DYNAMIC_DISPATCH(attend_item)
    (tiles_, halves, op, items[static_cast<size_t>(i)], mine);
  });
}

}  // namespace ei::cpu
#endif
