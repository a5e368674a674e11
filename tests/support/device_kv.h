#pragma once

#include "ei/ops/kv.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {

// What a head of a cache holds, on the host: [rows, d] and, if the pages hold key bounds, [blocks
// of these rows, d].
struct HostKv {
  Matrix k, v;
  Matrix lowest{}, highest{};
};

// K and V of one layer on a backend, in pages that lie in no order. What is not held is NaN.
class DeviceKv {
 public:
  struct Shape {
    DType dtype = DType::kF32;
    int64_t head_dim = 0;
    int64_t page_rows = 0;
    int64_t max_rows = 0;
    int64_t block = 0;

    PageLayout layout() const {
      return {.dtype = dtype, .head_dim = head_dim, .rows = page_rows, .block = block};
    }
  };
  DeviceKv(Backend& backend, const Shape& shape, const std::vector<HostKv>& heads);

  KvLayer layer() const;
  // To be told before an op appends n rows to every head.
  void expect_rows(int64_t n) { rows_bound_ += n; }
  // As the backend holds them: rounded to the cache's type.
  std::vector<HostKv> heads() const;

 private:
  Backend* backend_;
  Shape shape_;
  Buffer memory_;
  std::vector<void*> table_;  // [n_heads, max_pages]
  DeviceArray<void*, 2> pages_;
  DeviceArray<int32_t, 1> n_rows_;
  int64_t rows_bound_ = 0;
};

// Heads of the given numbers of rows with normal keys and values; `uneven`: of every 512 rows
// the first 256 are of different sizes, so that their scales differ.
std::vector<HostKv> random_heads(const std::vector<int64_t>& rows, int64_t d, uint64_t seed,
                                 bool uneven = false);

}  // namespace ei::test
