#pragma once

#include <cstdint>

#include "ei/cpu/amx.h"
#include "ei/ops/tensor.h"

namespace ei::cpu {

// What Weight::tiled stands for: a matrix in bf16 as the tile unit multiplies by it (amx.h). Its
// outputs are in groups of two registers' columns; a group has, for every kAmxDepth inputs, both
// registers, and follows the group before in memory. Zeros fill up rows and columns.
struct TiledWeight {
  static constexpr int64_t kOutputs = 2 * kAmxRows;  // of a group
  static constexpr int64_t kStep = 2 * kAmxTile;     // numbers of a group's kAmxDepth inputs

  int64_t rows, cols;
  const uint16_t* numbers = nullptr;

  explicit TiledWeight(const Weight& weight)
      : rows(weight.rows),
        cols(weight.cols),
        numbers(weight.tiled ? static_cast<const uint16_t*>(weight.data) : nullptr) {}

  int64_t groups() const { return (rows + kOutputs - 1) / kOutputs; }
  int64_t depth_tiles() const { return (cols + kAmxDepth - 1) / kAmxDepth; }
  int64_t group_size() const { return depth_tiles() * kStep; }
  int64_t bytes() const { return groups() * group_size() * int64_t{sizeof(uint16_t)}; }
  const uint16_t* at(int64_t group, int64_t depth_tile) const {
    return numbers + group * group_size() + depth_tile * kStep;
  }
};

}  // namespace ei::cpu
