#pragma once

#include <cstdint>

#include "ei/base/dtype.h"

namespace ei {

// What a page of a cache holds. All of it is rows of head_dim numbers of one type, contiguous, in
// this order:
//
//   keys [rows], values [rows], scales, lowest [n_blocks], highest [n_blocks]
//
// The last two are elementwise bounds of the keys of every block (METHOD.md 1.1): of keys as they
// are stored, so that the keys' type holds them exactly. Behind them a page is filled up to whole
// groups of 8 rows: in memory cut into pages, groups can be counted from its start.
//
// A row of kQ8 begins with its scale, a float. Its bounds, of keys of several scales, are bf16 that
// are rounded outwards, and each takes the place of two rows.
//
// Rows of kFP8 alone have scales apart, floats: of keys [rows], then of values [rows]. Keys are
// whole numbers of 8 bits, their scale a power of 2, at most 64; values are in e4m3, their scale a
// power of 16, at most 16. So bf16 holds every number exactly, and neighbours mostly have the same
// scale; bounds are such numbers, and again each takes the place of two rows. Scales lie where they
// do whether there are bounds or not: a compacted cache has none any more.
struct PageLayout {
  DType dtype = DType::kBF16;  // kBF16, kF32, kQ8 or kFP8
  int64_t head_dim = 0;
  int64_t rows = 512;  // tokens: whole segments
  int64_t block = 0;   // tokens of a block, divides rows; 0: no bounds are kept

  constexpr int64_t n_blocks() const { return block == 0 ? 0 : rows / block; }
  // Where each begins, in rows; keys begin the page.
  constexpr int64_t first_value() const { return rows; }
  constexpr int64_t first_scale() const { return 2 * rows; }
  constexpr int64_t first_lowest() const {  // even, as bounds may be two rows long
    return first_scale() + (2 * rows * scale_bytes() + 2 * row_bytes() - 1) / (2 * row_bytes()) * 2;
  }
  constexpr int64_t first_highest() const { return first_lowest() + n_blocks() * bound_rows(); }
  constexpr int64_t end() const {
    return (first_highest() + n_blocks() * bound_rows() + 7) / 8 * 8;
  }

  constexpr DType bound_dtype() const { return bound_rows() == 2 ? DType::kBF16 : dtype; }
  constexpr int64_t bound_rows() const {
    return dtype == DType::kQ8 || dtype == DType::kFP8 ? 2 : 1;
  }
  constexpr int64_t row_bytes() const { return row_bytes(dtype, head_dim); }
  static constexpr int64_t row_bytes(DType type, int64_t head_dim) {
    return type == DType::kQ8 ? (numbers_at(type) + head_dim + 3) / 4 * 4
                              : head_dim * dtype_bytes(type);
  }
  // Of a scale that lies apart from its row.
  constexpr int64_t scale_bytes() const {
    return dtype == DType::kFP8 ? int64_t{sizeof(float)} : 0;
  }
  // Of a key, or a value, with its scale.
  constexpr int64_t entry_bytes() const { return row_bytes() + scale_bytes(); }
  // Where in a row its numbers begin, in bytes.
  static constexpr int64_t numbers_at(DType type) {
    return type == DType::kQ8 ? int64_t{sizeof(float)} : 0;
  }
  // Heads that kFP8 is for: a warp finds the scales of whole rows.
  static constexpr bool has_fp8(int64_t head_dim) {
    return head_dim >= 16 && head_dim <= 256 && (head_dim & (head_dim - 1)) == 0;
  }
  constexpr int64_t bytes() const { return end() * row_bytes(); }
  // Pages that n tokens take.
  constexpr int64_t pages(int64_t n) const { return (n + rows - 1) / rows; }
};

}  // namespace ei
