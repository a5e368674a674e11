#include <algorithm>

#include "ei/cpu/amx.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/panels.h"
#include "ei/cpu/parallel.h"
#include "ei/ops/weight_blocks.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/matmul_amx.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/amx-inl.h"

#ifndef EI_CPU_MATMUL_AMX_ONCE_
#define EI_CPU_MATMUL_AMX_ONCE_
namespace ei::cpu {

// Inputs a block of packed weights is deep: 32 rows of x of this depth, and as many weights that
// they meet, are 32 KiB, in L1.
constexpr int64_t kDepth = 256;

// Outputs and rows of x that a thread takes at a time. Rows are read once for so many outputs,
// their sums and the packed weights stay in L2, and packing is a sixteenth of the products with
// 1024 rows.
constexpr int64_t kMostOutputs = 256, kLeastOutputs = 64;
constexpr int64_t kMostTiles = 1024 / kAmxRows, kLeastTiles = 256 / kAmxRows;

// Rows of activations in the order of the unit's registers: [rows / 16, cols / 32] tiles, zeros
// beyond rows and columns.
struct AmxRows {
  uint16_t* tiles;
  int64_t rows, cols;

  int64_t row_tiles() const { return (rows + kAmxRows - 1) / kAmxRows; }
  int64_t depth_tiles() const { return (cols + kAmxDepth - 1) / kAmxDepth; }
  int64_t size() const { return row_tiles() * depth_tiles() * kAmxTile; }
  uint16_t* at(int64_t row_tile, int64_t depth_tile) const {
    return tiles + (row_tile * depth_tiles() + depth_tile) * kAmxTile;
  }
};

// What a thread needs: sums over the inputs so far, two by two registers after each other: in the
// output each row of a register would be in a page of its own; a packed panel; rows of weights on
// their way into it.
struct PanelMemory {
  alignas(64) float sums[kMostTiles * kAmxRows * kMostOutputs];
  alignas(64) uint16_t packed[kMostOutputs * kDepth];
  alignas(64) uint16_t rounded[kAmxRows * kDepth];
  alignas(64) float numbers[kDepth];
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

// Inputs [from, from + depth) of n <= kAmxRows outputs from `begin` on, zeros beyond.
template <class Unit>
void pack_outputs(const Weight& weight, int64_t begin, int64_t n, int64_t from, int64_t depth,
                  PanelMemory& memory, uint16_t* HWY_RESTRICT to) {
  const int64_t n_tiles = (depth + kAmxDepth - 1) / kAmxDepth;
  const bool in_place = weight.format == WeightFormat::kBF16 && depth % kAmxDepth == 0;
  const uint16_t* rows[kAmxRows];
  for (int64_t j = 0; j < kAmxRows; ++j) {
    const char* row = j < n ? weight.row(begin + j) + row_bytes(weight.format, from) : nullptr;
    if (row != nullptr && in_place) {
      rows[j] = reinterpret_cast<const uint16_t*>(row);
      continue;
    }
    if (row != nullptr) dequantize(weight.format, row, depth, memory.numbers);
    uint16_t* rounded = memory.rounded + j * kDepth;
    round_row<Unit>(memory.numbers, row != nullptr ? depth : 0, n_tiles * kAmxDepth, rounded);
    rows[j] = rounded;
  }
  for (int64_t t = 0; t < n_tiles; ++t)
    pack_pairs(rows, t * kAmxDepth, reinterpret_cast<uint32_t*>(to + t * kAmxTile));
}

// Row tiles [first, last) of x by outputs [begin, end) of a part.
template <class Unit>
void multiply_tiles(const AmxRows& x, const MatMul::Part& part, int64_t first, int64_t last,
                    int64_t begin, int64_t end, PanelMemory& memory) {
  const View<float, 2> out = rows_of(part.out);
  const int64_t stride = part.out.cols, last_row = std::min(last * kAmxRows, x.rows);
  bool add = part.accumulate;
  if (part.bias.data != nullptr) {
    for (int64_t r = first * kAmxRows; r < last_row; ++r)
      for (int64_t j = begin; j < end; ++j)
        out[r][j] = add ? out[r][j] + part.bias[j] : part.bias[j];
    add = true;
  }
  // Depths that are about the same, since every further one loads and stores the sums, but of whole
  // blocks of weights.
  const int64_t n_depths = std::max<int64_t>(1, (x.cols + kDepth - 1) / kDepth);
  const int64_t whole = std::max(kAmxDepth, block_of(part.weight.format).weights);
  const int64_t deep = ((x.cols + n_depths - 1) / n_depths + whole - 1) / whole * whole;
  constexpr int64_t kWide = 2 * kAmxRows;
  Unit::begin();
  for (int64_t from = 0; from < x.cols; from += deep) {
    const bool is_first = from == 0, is_last = from + deep >= x.cols;
    const int64_t depth = std::min(deep, x.cols - from);
    const int64_t n_tiles = (depth + kAmxDepth - 1) / kAmxDepth, width = n_tiles * kAmxTile;
    for (int64_t j = begin; j < end; j += kAmxRows)
      pack_outputs<Unit>(part.weight, j, std::min(kAmxRows, end - j), from, depth, memory,
                         memory.packed + (j - begin) / kAmxRows * width);
    for (int64_t r = first; r < last; r += 2) {
      const uint16_t* rows = x.at(r, from / kAmxDepth);
      const int64_t x_step = x.depth_tiles() * kAmxTile;
      const int64_t m = std::min<int64_t>(2, last - r);
      const int64_t n_rows = std::min(m * kAmxRows, last_row - r * kAmxRows);
      for (int64_t j = begin; j < end; j += 2 * kAmxRows) {
        const uint16_t* w = memory.packed + (j - begin) / kAmxRows * width;
        const int64_t outputs = std::min(2 * kAmxRows, end - j);
        const int64_t n = (outputs + kAmxRows - 1) / kAmxRows;
        float* const sums = memory.sums + ((r - first) * kMostOutputs + (j - begin) * 2) * kAmxRows;
        float* const result = out[r * kAmxRows].data + j;
        const AmxSums between = {sums, kWide};
        const bool whole_registers = n_rows == m * kAmxRows && outputs == n * kAmxRows;
        const AmxSums at_result = whole_registers ? AmxSums{result, stride} : between;
        if (is_first && add && !whole_registers)
          for (int64_t i = 0; i < n_rows; ++i)
            std::copy_n(result + i * stride, outputs, sums + i * kWide);
        tile_product<Unit>(m, n, n_tiles, rows, x_step, w, width,
                           !is_first ? between
                           : add     ? at_result
                                     : AmxSums{nullptr, 0},
                           is_last ? at_result : between);
        if (is_last && !whole_registers)
          for (int64_t i = 0; i < n_rows; ++i)
            std::copy_n(sums + i * kWide, outputs, result + i * stride);
      }
    }
  }
  Unit::end();
}

void pack_rows(Tiles tiles, const Act& x, int64_t row_tile, const AmxRows& to) {
  if (tiles == Tiles::kAmx) return pack_row_tile<Amx>(x, row_tile, to);
  pack_row_tile<EmulatedAmx>(x, row_tile, to);
}
void multiply(Tiles tiles, const AmxRows& x, const MatMul::Part& part, int64_t first, int64_t last,
              int64_t begin, int64_t end, PanelMemory& memory) {
  if (tiles == Tiles::kAmx) return multiply_tiles<Amx>(x, part, first, last, begin, end, memory);
  multiply_tiles<EmulatedAmx>(x, part, first, last, begin, end, memory);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(pack_rows);
HWY_EXPORT(multiply);

}  // namespace

// Weights of 32 bits are not rounded to 16, and columns in an order of their own are the other
// kernels'. What has to be taken apart first is worth it for some dozens of rows.
bool CpuBackend::fits_tiles(const MatMul& op) const {
  return tiles_ != Tiles::kNone && math_ == Math::kBF16 &&
         std::all_of(op.parts.begin(), op.parts.end(), [&](const MatMul::Part& part) {
           return part.weight.data == nullptr ||
                  (part.weight.format != WeightFormat::kF32 && part.weight.order == nullptr &&
                   (part.weight.format == WeightFormat::kBF16 || op.x.rows >= 4 * kAmxRows));
         });
}

// Work is split over panels of outputs of all parts and over rows; what is added up to an output,
// and in which order, depends on neither.
void CpuBackend::run_tiles(const MatMul& op) {
  AmxRows x = {nullptr, op.x.rows, op.x.cols};
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
