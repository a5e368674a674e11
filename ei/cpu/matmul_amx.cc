#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ei/cpu/amx.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/panels.h"
#include "ei/cpu/parallel.h"
#include "ei/cpu/tiled_weight.h"
#include "ei/ops/weight_blocks.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/matmul_amx.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/amx-inl.h"
#include "ei/cpu/weights-inl.h"

#ifndef EI_CPU_MATMUL_AMX_ONCE_
#define EI_CPU_MATMUL_AMX_ONCE_
namespace ei::cpu {

// Inputs that products are deep: a strip of 32 rows of x, as many weights that they meet and their
// sums are 36 KiB, in L1.
constexpr int64_t kDepth = 256;

// Outputs and rows of x that a thread takes at a time. Rows are read once for so many outputs,
// their sums, a depth of them and of the weights stay in L2.
constexpr int64_t kMostOutputs = 256, kLeastOutputs = 64;
constexpr int64_t kMostTiles = 512 / kAmxRows, kLeastTiles = 256 / kAmxRows;

// Rows and outputs of a block, whose sums are 2 by 2 registers.
constexpr int64_t kBlock = TiledWeight::kOutputs;

// Rows of activations in the order of the unit's registers: `deep` tiles of the first row tile, of
// the second, ..., then the next `deep` of each; zeros beyond rows and columns.
struct AmxRows {
  uint16_t* tiles;
  int64_t rows, cols, deep;

  int64_t row_tiles() const { return (rows + kAmxRows - 1) / kAmxRows; }
  int64_t depth_tiles() const { return (cols + kAmxDepth - 1) / kAmxDepth; }
  int64_t size() const { return row_tiles() * depth_tiles() * kAmxTile; }
  uint16_t* at(int64_t row_tile, int64_t depth_tile) const {
    const int64_t first = depth_tile / deep * deep, n = std::min(deep, depth_tiles() - first);
    return tiles + (first * row_tiles() + row_tile * n + depth_tile - first) * kAmxTile;
  }
};

// Rows of weights on their way into a panel.
struct PackedRows {
  alignas(64) uint16_t rounded[kAmxRows * kDepth];
  alignas(64) float numbers[kDepth];
};

// What a thread needs: sums over the inputs so far, block by block, a register after the other (in
// the output each row of a register would be in a page of its own), and a place for those of no
// block; a packed panel; rows of weights on their way into it.
struct PanelMemory {
  alignas(64) float sums[kMostTiles * kAmxRows * kMostOutputs];
  alignas(64) float spare[kBlock * kBlock];
  alignas(64) uint16_t packed[kMostOutputs * kDepth];
  PackedRows rows;
};

}  // namespace ei::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

template <class Unit>
void pack_row_tile(const Act& x, int64_t row_tile, const AmxRows& to) {
  const View<float, 2> rows = rows_of(x);
  for (int64_t i = 0; i < kAmxRows; ++i) {
    const int64_t r = row_tile * kAmxRows + i;
    for (int64_t t = 0; t < to.depth_tiles(); ++t) {
      const int64_t left = r < to.rows ? std::min(kAmxDepth, to.cols - t * kAmxDepth) : 0;
      round_row<Unit>(left == 0 ? nullptr : rows[r].data + t * kAmxDepth, left, kAmxDepth,
                      to.at(row_tile, t) + i * kAmxDepth);
    }
  }
}

// Weights of an integer format, whole blocks, in bf16.
template <WeightFormat kFormat>
void round_blocks(const char* row, int64_t n, uint16_t* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  float numbers[kDepth];
  dequantize(kFormat, row, n, numbers);
  round_row<EmulatedAmx>(numbers, n, n, to);
#else
  constexpr int64_t kSize = block_of(kFormat).weights, kGroup = group_of(kFormat);
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int16_t, decltype(d)> d16;
  const hn::Rebind<uint16_t, decltype(d)> du16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* block = reinterpret_cast<const uint8_t*>(row);
  for (int64_t from = 0; from < n; from += kSize, block += block_of(kFormat).bytes) {
    const Scales<kFormat> scales(block);
    for (int64_t k = 0; k < kSize; k += lanes) {
      const auto q = hn::ConvertTo(d, hn::PromoteTo(di, load_numbers<kFormat>(d16, block, k)));
      const auto scale = scales.scale(d, k / kGroup);
      if constexpr (has_offset(kFormat)) {
        const auto value = hn::MulSub(q, scale, scales.offset(d, k / kGroup));
        hn::StoreU(round_to_bf16(d, value), du16, to + from + k);
      } else {
        hn::StoreU(round_to_bf16(d, hn::Mul(q, scale)), du16, to + from + k);
      }
    }
  }
#endif
}
void round_blocks(WeightFormat format, const char* row, int64_t n, uint16_t* to) {
  with_integers(format, [&]<WeightFormat kFormat>() { round_blocks<kFormat>(row, n, to); });
}

// Inputs [from, from + depth) of the group of outputs of a TiledWeight that begins with `begin`, in
// its order. Rows are copied first: where they are a power of two apart, as in many a model, all 16
// share a few lines of L1, and are read a quarter of a line at a time.
template <class Unit>
void pack_outputs(const Weight& weight, int64_t begin, int64_t from, int64_t depth,
                  PackedRows& memory, uint16_t* HWY_RESTRICT to) {
  const int64_t n_tiles = (depth + kAmxDepth - 1) / kAmxDepth;
  for (int64_t half = 0; half < 2; ++half, begin += kAmxRows, to += kAmxTile) {
    const uint16_t* rows[kAmxRows];
    for (int64_t j = 0; j < kAmxRows; ++j) {
      uint16_t* const rounded = memory.rounded + j * kDepth;
      rows[j] = rounded;
      const bool is_there = begin + j < weight.rows;
      const char* row = is_there ? weight.row(begin + j) + row_bytes(weight.format, from) : nullptr;
      if (is_there && weight.format == WeightFormat::kBF16) {
        std::memcpy(rounded, row, static_cast<size_t>(depth) * sizeof *rounded);
        std::fill(rounded + depth, rounded + n_tiles * kAmxDepth, uint16_t{0});
        continue;
      }
      if (is_there && is_integer(weight.format)) {
        round_blocks(weight.format, row, depth, rounded);
        continue;
      }
      if (is_there) dequantize(weight.format, row, depth, memory.numbers);
      round_row<Unit>(memory.numbers, is_there ? depth : 0, n_tiles * kAmxDepth, rounded);
    }
    for (int64_t t = 0; t < n_tiles; ++t)
      pack_pairs(rows, t * kAmxDepth, reinterpret_cast<uint32_t*>(to + t * TiledWeight::kStep));
  }
}

// A group of a weight in bf16.
void pack_group(Tiles tiles, const Weight& weight, int64_t group, uint16_t* to) {
  PackedRows memory;
  for (int64_t from = 0; from < weight.cols; from += kDepth) {
    const int64_t depth = std::min(kDepth, weight.cols - from);
    uint16_t* at = to + from / kAmxDepth * TiledWeight::kStep;
    if (tiles == Tiles::kAmx) {
      pack_outputs<Amx>(weight, group * kBlock, from, depth, memory, at);
    } else {
      pack_outputs<EmulatedAmx>(weight, group * kBlock, from, depth, memory, at);
    }
  }
}

// f(c) for the registers of a block of kM row tiles.
template <int kM, class F>
HWY_INLINE void for_sums(const F& f) {
  f(std::integral_constant<int, 0>());
  f(std::integral_constant<int, 1>());
  if constexpr (kM == 2) f(std::integral_constant<int, 2>());
  if constexpr (kM == 2) f(std::integral_constant<int, 3>());
}
template <class Unit, int kM>
HWY_INLINE void store_sums(float* sums) {
  for_sums<kM>([&](auto c) HWY_ATTR {
    Unit::template store<c.value>(sums + c.value * kAmxRows * kAmxRows, kAmxRowBytes);
  });
}

// kM row tiles of x by 2 of weights, each n_tiles deep, added to `sums` or begun. They stay in
// registers: every register of the block before is stored to `before` just ahead of the first
// product that needs its place. A store waits for its product, and all of them in a row would fill
// the processor's queue of stores, so that no product is begun meanwhile. What is at `next`, if
// there is something, will be wanted later, 2 lines of it for every tile.
template <class Unit, int kM, bool kBegun>
HWY_INLINE void multiply_block(int64_t n_tiles, const uint16_t* a, const uint16_t* b,
                               const float* sums, float* before, const uint16_t* next) {
  const int64_t step = n_tiles * kAmxTile;
  const auto multiply = [&](const auto& turn) HWY_ATTR {
    Unit::template load<4>(a, kAmxRowBytes);
    Unit::template load<6>(b, kAmxRowBytes);
    turn(std::integral_constant<int, 0>());
    Unit::template multiply<0, 4, 6>();
    Unit::template load<7>(b + kAmxTile, kAmxRowBytes);
    turn(std::integral_constant<int, 1>());
    Unit::template multiply<1, 4, 7>();
    if constexpr (kM == 2) {
      Unit::template load<5>(a + step, kAmxRowBytes);
      turn(std::integral_constant<int, 2>());
      Unit::template multiply<2, 5, 6>();
      turn(std::integral_constant<int, 3>());
      Unit::template multiply<3, 5, 7>();
    }
    if (next != nullptr) {
      __builtin_prefetch(next, 0, 2);  // into L2
      __builtin_prefetch(next + kAmxRowBytes / 2, 0, 2);
      next += kAmxRowBytes;
    }
    a += kAmxTile;
    b += TiledWeight::kStep;
  };
  multiply([&](auto c) HWY_ATTR {
    constexpr int64_t kAt = c.value * kAmxRows * kAmxRows;
    Unit::template store<c.value>(before + kAt, kAmxRowBytes);
    if constexpr (kBegun) {
      Unit::template load<c.value>(sums + kAt, kAmxRowBytes);
    } else {
      Unit::template zero<c.value>();
    }
  });
  for (int64_t t = 1; t < n_tiles; ++t) multiply([](auto) HWY_ATTR {});
}

// What a thread takes at a time: row tiles [first, last) of x by outputs [begin, end) of a part.
struct Panel {
  const AmxRows& x;
  const MatMul::Part& part;
  int64_t first, last, begin, end;
  PanelMemory& memory;

  int64_t last_row() const { return std::min(last * kAmxRows, x.rows); }
  // Of row tile r and kAmxRows outputs from j on.
  float* sums(int64_t r, int64_t j) const {
    const int64_t row = r - first, column = (j - begin) / kAmxRows;
    const int64_t block = row / 2 * (kMostOutputs / kBlock) + column / 2;
    return memory.sums + (block * 4 + row % 2 * 2 + column % 2) * kAmxRows * kAmxRows;
  }
};

// Weights of some inputs in the order of a TiledWeight: where the first is, how much further each
// block's are, and those of the next inputs, if they come from memory.
struct PanelWeights {
  const uint16_t* at;
  int64_t step, next_size;
};

// Inputs of n_tiles from `tile` on, for row tiles [r, last), kM at a time.
template <class Unit, int kM>
HWY_INLINE void multiply_strips(const Panel& panel, int64_t tile, int64_t n_tiles,
                                const PanelWeights& weights, int64_t r, int64_t last) {
  float* before = panel.memory.spare;
  // Every strip brings a part of the next inputs' weights.
  int64_t next = r == panel.first ? 0 : weights.next_size;
  for (; r + kM <= last; r += kM) {
    const uint16_t *rows = panel.x.at(r, tile), *block = weights.at;
    for (int64_t j = panel.begin; j < panel.end; j += kBlock, block += weights.step) {
      float* const sums = panel.sums(r, j);
      const uint16_t* wanted =
          next < weights.next_size ? block + n_tiles * TiledWeight::kStep + next : nullptr;
      if (tile == 0) {
        multiply_block<Unit, kM, false>(n_tiles, rows, block, sums, before, wanted);
      } else {
        multiply_block<Unit, kM, true>(n_tiles, rows, block, sums, before, wanted);
      }
      before = sums;
    }
    next += n_tiles * kAmxRowBytes;
  }
  store_sums<Unit, kM>(before);
}

// A row after the other: in the output they are in different pages, and often in the same few lines
// of the caches.
void put_sums(const Panel& panel) {
  const hn::CappedTag<float, kAmxRows> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const MatMul::Part& part = panel.part;
  const View<float, 2> out = rows_of(part.out);
  for (int64_t r = panel.first * kAmxRows; r < panel.last_row(); ++r)
    for (int64_t j = panel.begin; j < panel.end; j += kAmxRows) {
      const float* HWY_RESTRICT from = panel.sums(r / kAmxRows, j) + r % kAmxRows * kAmxRows;
      const float* HWY_RESTRICT bias = part.bias.data == nullptr ? nullptr : part.bias.data + j;
      float* HWY_RESTRICT to = out[r].data + j;
      const int64_t n = std::min(kAmxRows, panel.end - j);
      int64_t c = 0;
      for (; c + lanes <= n; c += lanes) {
        auto sum = hn::Load(d, from + c);
        if (bias != nullptr) sum = hn::Add(sum, hn::LoadU(d, bias + c));
        if (part.accumulate) sum = hn::Add(sum, hn::LoadU(d, to + c));
        hn::StoreU(sum, d, to + c);
      }
      for (; c < n; ++c)
        to[c] = from[c] + (bias != nullptr ? bias[c] : 0) + (part.accumulate ? to[c] : 0);
    }
}

template <class Unit>
void multiply_panel(const Panel& panel) {
  const auto& [x, part, first, last, begin, end, memory] = panel;
  Unit::begin();
  for (int64_t tile = 0; tile < x.depth_tiles(); tile += x.deep) {
    const int64_t n_tiles = std::min(x.deep, x.depth_tiles() - tile), from = tile * kAmxDepth;
    const int64_t depth = std::min(n_tiles * kAmxDepth, x.cols - from);
    PanelWeights weights = {memory.packed, n_tiles * TiledWeight::kStep, 0};
    if (part.weight.tiled) {
      const TiledWeight tiled(part.weight);
      weights = {tiled.at(begin / kBlock, tile), tiled.group_size(),
                 std::min(x.deep, x.depth_tiles() - tile - n_tiles) * TiledWeight::kStep};
    } else {
      for (int64_t j = begin; j < end; j += kBlock)
        pack_outputs<Unit>(part.weight, j, from, depth, memory.rows,
                           memory.packed + (j - begin) / kBlock * weights.step);
    }
    const int64_t odd = (last - first) % 2;
    multiply_strips<Unit, 2>(panel, tile, n_tiles, weights, first, last - odd);
    multiply_strips<Unit, 1>(panel, tile, n_tiles, weights, last - odd, last);
  }
  Unit::end();
  put_sums(panel);
}

void pack_rows(Tiles tiles, const Act& x, int64_t row_tile, const AmxRows& to) {
  if (tiles == Tiles::kAmx) return pack_row_tile<Amx>(x, row_tile, to);
  pack_row_tile<EmulatedAmx>(x, row_tile, to);
}
void multiply(Tiles tiles, const AmxRows& x, const MatMul::Part& part, int64_t first, int64_t last,
              int64_t begin, int64_t end, PanelMemory& memory) {
  const Panel panel = {x, part, first, last, begin, end, memory};
  if (tiles == Tiles::kAmx) return multiply_panel<Amx>(panel);
  multiply_panel<EmulatedAmx>(panel);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(pack_group);
HWY_EXPORT(pack_rows);
HWY_EXPORT(multiply);

// Depths that are about the same, since every further one loads and stores the sums, but of whole
// blocks of weights.
int64_t depth_of(const MatMul& op) {
  int64_t whole = kAmxDepth;
  for (const MatMul::Part& part : op.parts)
    if (part.weight.data != nullptr)
      whole = std::max<int64_t>(whole, block_of(part.weight.format).weights);
  const int64_t n_depths = std::max<int64_t>(1, (op.x.cols + kDepth - 1) / kDepth);
  return ((op.x.cols + n_depths - 1) / n_depths + whole - 1) / whole * whole;
}

}  // namespace

void CpuBackend::pack(const Weight& weight, uint16_t* to) const {
  const TiledWeight layout(weight);
  parallel_for(n_threads_, layout.groups(), [&](int64_t group) {
    HWY_DYNAMIC_DISPATCH(pack_group)(tiles_, weight, group, to + group * layout.group_size());
  });
}

// Weights of 32 bits are not rounded to 16, and columns in an order of their own are the other
// kernels'. What has to be taken apart first is worth it for some dozens of rows.
bool CpuBackend::fits_tiles(const MatMul::Part& part, int64_t n_rows) const {
  const Weight& weight = part.weight;
  return tiles_ != Tiles::kNone && math_ == Math::kBF16 && weight.data != nullptr &&
         weight.format != WeightFormat::kF32 && weight.order == nullptr &&
         (weight.format == WeightFormat::kBF16 || n_rows >= 4 * kAmxRows);
}

// Work is split over panels of outputs of all parts and over rows; what is added up to an output,
// and in which order, depends on neither.
void CpuBackend::run_tiles(const MatMul& op) {
  AmxRows x = {nullptr, op.x.rows, op.x.cols, depth_of(op) / kAmxDepth};
  const int64_t n_tiles = x.row_tiles();
  Panels panels = {op, kMostOutputs};
  int64_t step = kMostTiles;
  const auto few = [&] {
    return panels.size() * ((n_tiles + step - 1) / step) < 4 * int64_t{n_threads_};
  };
  while (few() && panels.step > kLeastOutputs) panels.step /= 2;
  while (few() && step > kLeastTiles) step /= 2;
  const int64_t n_blocks = (n_tiles + step - 1) / step;
  const int64_t x_bytes = x.size() * int64_t{sizeof(uint16_t)};
  char* memory = scratch_.get<char>(x_bytes + n_threads_ * int64_t{sizeof(PanelMemory)});
  x.tiles = reinterpret_cast<uint16_t*>(memory);
  auto* panel_memory = reinterpret_cast<PanelMemory*>(memory + x_bytes);
  parallel_for(n_threads_, n_tiles, [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(pack_rows)(tiles_, op.x, i, x);
  });
  parallel_for(n_threads_, panels.size() * n_blocks, [&](int64_t i, int thread) {
    const Panels::Panel& panel = panels[i / n_blocks];
    const int64_t first = i % n_blocks * step;
    HWY_DYNAMIC_DISPATCH(multiply)
    (tiles_, x, panel.part, first, std::min(first + step, n_tiles), panel.begin, panel.end,
     panel_memory[thread]);
  });
}

}  // namespace ei::cpu
#endif
