#pragma once

#include <cstdint>

// Rows of a paged cache: [page_rows, d] of K, then [page_rows, d] of V in every page.
namespace ei::cuda {

struct CacheRows {
  void* const* pages;  // [n_heads, max_pages]
  int64_t max_pages;
  int32_t page_rows;
  int32_t d;

  template <class T>
  __device__ T* key(int64_t head, int32_t row) const {
    return static_cast<T*>(pages[head * max_pages + row / page_rows]) +
           int64_t{row % page_rows} * d;
  }
  template <class T>
  __device__ T* value(int64_t head, int32_t row) const {
    return key<T>(head, row) + int64_t{page_rows} * d;
  }
};

}  // namespace ei::cuda
