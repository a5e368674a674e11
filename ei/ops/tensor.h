#pragma once

#include <cassert>
#include <cstdint>

#include "ei/base/view.h"
#include "ei/ops/weight_format.h"

namespace ei {

// Rows of activations in the backend's own number type (float on the CPU, bf16 on CUDA),
// contiguous. Opaque outside the backends: the engine cuts and passes it on, and never looks
// inside.
struct Act {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t elem_bytes = 0;

  Act slice(int64_t begin, int64_t count) const {
    assert(begin >= 0 && count >= 0 && begin + count <= rows);
    return {static_cast<char*>(data) + begin * cols * elem_bytes, count, cols, elem_bytes};
  }
  // The same elements as rows of another length, e.g. [n, n_heads * d] as [n * n_heads, d].
  Act reshape(int64_t new_cols) const {
    assert(rows * cols % new_cols == 0);
    return {data, rows * cols / new_cols, new_cols, elem_bytes};
  }
};

// A weight matrix as the checkpoint stores it, [rows = outputs, cols = inputs], row-major, rows of
// whole blocks. Placed on a device by Backend::place.
struct Weight {
  const void* data = nullptr;
  WeightFormat format = WeightFormat::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  // [cols]: column j of the blocks multiplies input order[j]; nullptr: input j. Of integer formats
  // alone.
  const int32_t* order = nullptr;
  // [rows, n_scales()]: instead of blocks, a row of kFP8 is its numbers alone, which these
  // multiply: all of them, or each those of a block, and then numbers stand in an order of the
  // device's.
  const float* scale = nullptr;
  bool by_block = false;
  // The device's own order of integers: tiles of 16 rows by 256 columns, filled up with zeros.
  bool in_tiles = false;
  // Instead of rows, numbers of kBF16 in the order of a CPU's products (ei/cpu/tiled_weight.h):
  // there is no row() nor slice().
  bool tiled = false;

  int64_t n_scales() const { return scale == nullptr ? 0 : by_block ? cols / 32 : 1; }
  int64_t bytes() const {
    const int64_t stored = in_tiles ? (rows + 15) / 16 * 16 : rows;
    return stored * (row_bytes() + n_scales() * int64_t{sizeof(float)});
  }
  // Of a row, without its scales; in tiles, a sixteenth of 16 rows.
  int64_t row_bytes() const {
    if (scale != nullptr) return cols;
    return ei::row_bytes(format, in_tiles ? (cols + 255) / 256 * 256 : cols);
  }
  const char* row(int64_t i) const {
    assert(!tiled);
    return static_cast<const char*>(data) + i * row_bytes();
  }
  Weight slice(int64_t begin, int64_t count) const {
    assert(begin >= 0 && count >= 0 && begin + count <= rows);
    assert(!in_tiles || begin % 16 == 0);
    Weight part = *this;
    part.data = row(begin);
    if (scale != nullptr) part.scale = scale + begin * n_scales();
    part.rows = count;
    return part;
  }
};

}  // namespace ei
