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

  int64_t n_scales() const { return scale == nullptr ? 0 : by_block ? cols / 32 : 1; }
  int64_t bytes() const { return rows * (row_bytes() + n_scales() * int64_t{sizeof(float)}); }
  // Of a row, without its scales.
  int64_t row_bytes() const { return scale != nullptr ? cols : ei::row_bytes(format, cols); }
  const char* row(int64_t i) const { return static_cast<const char*>(data) + i * row_bytes(); }
  Weight slice(int64_t begin, int64_t count) const {
    assert(begin >= 0 && count >= 0 && begin + count <= rows);
    Weight part = *this;
    part.data = row(begin);
    if (scale != nullptr) part.scale = scale + begin * n_scales();
    part.rows = count;
    return part;
  }
};

}  // namespace ei
