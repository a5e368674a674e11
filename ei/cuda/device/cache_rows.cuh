#pragma once

#include <cstdint>

// Where the rows of a paged cache are (PageLayout, counted in rows; bounds in rows of their own
// type).
namespace ei::cuda {

struct CacheRows {
  void* const* pages;  // [n_heads, max_pages]
  int64_t max_pages;
  int32_t page_rows;
  int32_t first_value, first_lowest, first_highest;
  int32_t page_blocks;
  int32_t scale_offset;  // of e4m3, in bytes
  int32_t d;

  template <class T>
  __device__ T* page(int64_t head, int32_t i) const {
    return static_cast<T*>(pages[head * max_pages + i]);
  }
  template <class T>
  __device__ T* key(int64_t head, int32_t row) const {
    return page<T>(head, row / page_rows) + int64_t{row % page_rows} * d;
  }
  template <class T>
  __device__ T* value(int64_t head, int32_t row) const {
    return key<T>(head, row) + int64_t{first_value} * d;
  }
  // What the numbers of a key in e4m3 are multiplied by; its value's is page_rows behind it.
  __device__ float* scale(int64_t head, int32_t row) const {
    return reinterpret_cast<float*>(page<char>(head, row / page_rows) + scale_offset) +
           row % page_rows;
  }
  // Bounds of the keys of a block: its lowest; its highest are highest_offset() numbers further.
  template <class T>
  __device__ T* lowest(int64_t head, int32_t block) const {
    return page<T>(head, block / page_blocks) + int64_t{first_lowest + block % page_blocks} * d;
  }
  __device__ int highest_offset() const { return (first_highest - first_lowest) * d; }
};

}  // namespace ei::cuda
