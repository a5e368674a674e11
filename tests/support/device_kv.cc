#include "tests/support/device_kv.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "tests/support/numbers.h"

namespace ei::test {
namespace {

int64_t pages_for(const DeviceKv::Shape& shape) {
  return std::max<int64_t>(1, shape.layout().pages(shape.max_rows));
}

}  // namespace

DeviceKv::DeviceKv(Backend& backend, const Shape& shape, const std::vector<HostKv>& heads)
    : backend_(&backend),
      shape_(shape),
      memory_(backend, std::ssize(heads) * pages_for(shape) * shape.layout().bytes()),
      pages_(backend, {std::ssize(heads), pages_for(shape)}),
      n_rows_(backend, {std::ssize(heads)}) {
  const PageLayout layout = shape.layout();
  const int64_t n_pages = pages_for(shape);
  for (int64_t i = 0; i < std::ssize(heads) * n_pages; ++i)
    table_.push_back(static_cast<char*>(memory_.data()) + i * layout.bytes());
  std::shuffle(table_.begin(), table_.end(), std::mt19937_64(42));

  std::vector<int32_t> n_rows;
  std::vector<char> bytes(static_cast<size_t>(layout.bytes()));
  for (size_t h = 0; h < heads.size(); ++h) {
    n_rows.push_back(static_cast<int32_t>(heads[h].k.dim(0)));
    rows_bound_ = std::max(rows_bound_, heads[h].k.dim(0));
    for (int64_t p = 0; p < n_pages; ++p) {
      std::fill(bytes.begin(), bytes.end(), '\xFF');  // NaN in every type
      auto* scales =
          reinterpret_cast<float*>(bytes.data() + layout.first_scale() * layout.row_bytes());
      // The page's share of so many rows of each page, at row `to` of it, where one takes `wide`.
      const auto put = [&](const Matrix& values, int64_t per_page, int64_t to, DType dtype,
                           int64_t wide, RowOf what, float* scale = nullptr) {
        for (int64_t r = p * per_page; r < std::min(values.dim(0), (p + 1) * per_page); ++r)
          encode_row(values[r].data, layout.head_dim, dtype, what,
                     bytes.data() + (to + (r - p * per_page) * wide) * layout.row_bytes(),
                     scale == nullptr ? nullptr : scale + (r - p * per_page));
      };
      put(heads[h].k, layout.rows, 0, layout.dtype, 1, RowOf::kKey, scales);
      put(heads[h].v, layout.rows, layout.first_value(), layout.dtype, 1, RowOf::kValue,
          scales + layout.rows);
      for (const auto& [bounds, first] : {std::pair{&heads[h].lowest, layout.first_lowest()},
                                          {&heads[h].highest, layout.first_highest()}})
        put(*bounds, layout.n_blocks(), first, layout.bound_dtype(), layout.bound_rows(),
            RowOf::kKey);
      backend.copy_in(table_[h * static_cast<size_t>(n_pages) + static_cast<size_t>(p)],
                      bytes.data(), std::ssize(bytes));
    }
  }
  backend.copy_in(pages_.view().data, table_.data(), std::ssize(table_) * int64_t{sizeof(void*)});
  backend.copy_in(n_rows_.view().data, n_rows.data(), std::ssize(n_rows) * 4);
}

KvLayer DeviceKv::layer() const {
  return {.layout = shape_.layout(),
          .pages = {pages_.view().data, pages_.view().dims},
          .n_rows = n_rows_.view(),
          .rows_bound = rows_bound_};
}

std::vector<HostKv> DeviceKv::heads() const {
  const PageLayout layout = shape_.layout();
  const std::vector<int32_t> n_rows = n_rows_.to_host(*backend_);
  const int64_t d = layout.head_dim;
  std::vector<char> bytes(static_cast<size_t>(layout.bytes()));
  std::vector<HostKv> heads;
  for (int64_t h = 0; h < std::ssize(n_rows); ++h) {
    const int64_t rows = n_rows[static_cast<size_t>(h)];
    const int64_t blocks = layout.block == 0 ? 0 : (rows + layout.block - 1) / layout.block;
    heads.push_back(
        {Matrix({rows, d}), Matrix({rows, d}), Matrix({blocks, d}), Matrix({blocks, d})});
    HostKv& head = heads.back();
    for (int64_t p = 0; p < layout.pages(rows); ++p) {
      backend_->copy_out(bytes.data(), table_[static_cast<size_t>(h * pages_for(shape_) + p)],
                         std::ssize(bytes));
      const auto* scales =
          reinterpret_cast<const float*>(bytes.data() + layout.first_scale() * layout.row_bytes());
      const auto take = [&](Matrix& values, int64_t per_page, int64_t from, DType dtype,
                            int64_t wide, RowOf what, const float* scale = nullptr) {
        for (int64_t r = p * per_page; r < std::min(values.dim(0), (p + 1) * per_page); ++r)
          decode_row(bytes.data() + (from + (r - p * per_page) * wide) * layout.row_bytes(), d,
                     dtype, what, values[r].data,
                     dtype == DType::kFP8 ? scale[r - p * per_page] : 0);
      };
      take(head.k, layout.rows, 0, layout.dtype, 1, RowOf::kKey, scales);
      take(head.v, layout.rows, layout.first_value(), layout.dtype, 1, RowOf::kValue,
           scales + layout.rows);
      for (const auto& [bounds, first] : {std::pair{&head.lowest, layout.first_lowest()},
                                          {&head.highest, layout.first_highest()}})
        take(*bounds, layout.n_blocks(), first, layout.bound_dtype(), layout.bound_rows(),
             RowOf::kKey);
    }
  }
  return heads;
}

std::vector<HostKv> random_heads(const std::vector<int64_t>& rows, int64_t d, uint64_t seed,
                                 bool uneven) {
  std::vector<HostKv> heads;
  for (const int64_t n : rows) {
    heads.push_back({normal<2>({n, d}, seed), normal<2>({n, d}, seed + 1)});
    for (int64_t r = 0; uneven && r < n; ++r) {
      if (r % 512 >= 256) continue;
      for (double& x : heads.back().k[r]) x *= std::exp2(2 * (r / 8 % 3) - 3);
      for (double& x : heads.back().v[r]) x *= std::exp2(3 * (r / 4 % 4) - 4);
    }
    seed += 2;
  }
  return heads;
}

}  // namespace ei::test
