#pragma once

#include <cstdint>

#include "ei/base/dtype.h"
#include "ei/base/view.h"

namespace ei {

// K and V of one layer of one sequence, as an op sees them. Every KV head has its own rows, in
// pages, so that heads may hold different tokens after a compression.
//
// A page is [page_rows, d] rows of K followed by [page_rows, d] rows of V, contiguous: row r of
// head h is row r % page_rows of pages[h][r / page_rows]. page_rows is a multiple of the block
// size, so a block of keys is one run of memory. RoPE is already applied, so rows need not be
// neighbours in the text. pages and n_rows are device memory.
struct KvLayer {
  DType dtype = DType::kBF16;  // kBF16 or kF32
  int64_t head_dim = 0;
  int64_t page_rows = 0;
  View<void* const, 2> pages;  // [n_kv_heads, max_pages]
  View<int32_t, 1> n_rows;     // [n_kv_heads] rows held; max_rows() of them fit
  int64_t rows_bound = 0;      // no head holds more: sizes work without asking the device

  EI_HOST_DEVICE int64_t n_kv_heads() const { return n_rows.dim(0); }
  EI_HOST_DEVICE int64_t max_rows() const { return pages.dim(1) * page_rows; }
  EI_HOST_DEVICE int64_t page_bytes() const {
    return 2 * page_rows * head_dim * dtype_bytes(dtype);
  }
};

// Elementwise bounds of the keys of every block of `block` tokens (METHOD.md 1.1), float.
struct KeyBounds {
  View<float, 3> min;  // [n_kv_heads, max_blocks, d]
  View<float, 3> max;
  int64_t block = 0;  // tokens; 0: no bounds are kept
};

}  // namespace ei
