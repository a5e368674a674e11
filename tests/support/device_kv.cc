#include "tests/support/device_kv.h"

#include <algorithm>
#include <random>

#include "tests/support/numbers.h"

namespace ei::test {
namespace {

int64_t pages_for(const DeviceKv::Shape& shape) {
  return std::max<int64_t>(1, (shape.max_rows + shape.page_rows - 1) / shape.page_rows);
}

int64_t page_bytes(const DeviceKv::Shape& shape) {
  return 2 * shape.page_rows * shape.head_dim * dtype_bytes(shape.dtype);
}

}  // namespace

DeviceKv::DeviceKv(Backend& backend, const Shape& shape, const std::vector<HostKv>& heads)
    : backend_(&backend),
      shape_(shape),
      memory_(backend, std::ssize(heads) * pages_for(shape) * page_bytes(shape)),
      pages_(backend, {std::ssize(heads), pages_for(shape)}),
      n_rows_(backend, {std::ssize(heads)}) {
  const int64_t n_pages = pages_for(shape), d = shape.head_dim;
  const auto page = static_cast<size_t>(page_bytes(shape));
  for (int64_t i = 0; i < std::ssize(heads) * n_pages; ++i)
    table_.push_back(static_cast<char*>(memory_.data()) + static_cast<size_t>(i) * page);
  std::shuffle(table_.begin(), table_.end(), std::mt19937_64(42));

  std::vector<int32_t> n_rows;
  std::vector<char> bytes(page);
  for (size_t h = 0; h < heads.size(); ++h) {
    const int64_t rows = heads[h].k.dim(0);
    n_rows.push_back(static_cast<int32_t>(rows));
    rows_bound_ = std::max(rows_bound_, rows);
    for (int64_t p = 0; p < n_pages; ++p) {
      std::fill(bytes.begin(), bytes.end(), '\xFF');  // NaN in every type
      for (int64_t r = p * shape.page_rows; r < std::min(rows, (p + 1) * shape.page_rows); ++r)
        for (int64_t c = 0; c < d; ++c) {
          const int64_t at = (r - p * shape.page_rows) * d + c;
          char* key = bytes.data() + at * dtype_bytes(shape.dtype);
          encode(heads[h].k[r][c], shape.dtype, key);
          encode(heads[h].v[r][c], shape.dtype, key + page / 2);
        }
      backend.copy_in(table_[h * static_cast<size_t>(n_pages) + static_cast<size_t>(p)],
                      bytes.data(), std::ssize(bytes));
    }
  }
  backend.copy_in(pages_.view().data, table_.data(), std::ssize(table_) * int64_t{sizeof(void*)});
  backend.copy_in(n_rows_.view().data, n_rows.data(), std::ssize(n_rows) * 4);
}

KvLayer DeviceKv::layer() const {
  return {.dtype = shape_.dtype,
          .head_dim = shape_.head_dim,
          .page_rows = shape_.page_rows,
          .pages = {pages_.view().data, pages_.view().dims},
          .n_rows = n_rows_.view(),
          .rows_bound = rows_bound_};
}

std::vector<HostKv> DeviceKv::heads() const {
  const std::vector<int32_t> n_rows = n_rows_.to_host(*backend_);
  const int64_t n_pages = pages_for(shape_), d = shape_.head_dim;
  const auto page = static_cast<size_t>(page_bytes(shape_));
  std::vector<char> bytes(page);
  std::vector<HostKv> heads;
  for (size_t h = 0; h < n_rows.size(); ++h) {
    heads.push_back({Matrix({n_rows[h], d}), Matrix({n_rows[h], d})});
    HostKv& head = heads.back();
    for (int64_t r = 0; r < n_rows[h]; ++r) {
      if (r % shape_.page_rows == 0)
        backend_->copy_out(
            bytes.data(),
            table_[h * static_cast<size_t>(n_pages) + static_cast<size_t>(r / shape_.page_rows)],
            std::ssize(bytes));
      for (int64_t c = 0; c < d; ++c) {
        const char* key = bytes.data() + (r % shape_.page_rows * d + c) * dtype_bytes(shape_.dtype);
        head.k[r][c] = decode(key, shape_.dtype);
        head.v[r][c] = decode(key + page / 2, shape_.dtype);
      }
    }
  }
  return heads;
}

std::vector<HostKv> random_heads(const std::vector<int64_t>& rows, int64_t d, uint64_t seed) {
  std::vector<HostKv> heads;
  for (const int64_t n : rows) {
    heads.push_back({normal<2>({n, d}, seed), normal<2>({n, d}, seed + 1)});
    seed += 2;
  }
  return heads;
}

}  // namespace ei::test
