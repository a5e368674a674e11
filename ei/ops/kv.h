#pragma once

#include <cstdint>

#include "ei/base/view.h"
#include "ei/ops/page_layout.h"

namespace ei {

// K and V of one layer of one sequence, and the bounds of its key blocks, as an op sees them. Every
// KV head has its own rows, in pages, so that heads may hold different tokens after a compression.
//
// Row r of head h is row r % layout.rows of the keys and values of pages[h][r / layout.rows], and
// its block is r / layout.block. RoPE is already applied, so rows need not be neighbours in the
// text. pages and n_rows are device memory.
struct KvLayer {
  PageLayout layout;
  View<void* const, 2> pages;  // [n_kv_heads, max_pages]
  View<int32_t, 1> n_rows;     // [n_kv_heads] rows held; max_rows() of them fit
  int64_t rows_bound = 0;      // no head holds more: sizes work without asking the device

  int64_t n_kv_heads() const { return n_rows.dim(0); }
  int64_t max_rows() const { return pages.dim(1) * layout.rows; }
};

}  // namespace ei
