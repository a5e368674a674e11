#include "ei/cache/kv_cache.h"

#include <algorithm>
#include <numeric>

#include "ei/base/fail.h"

namespace ei {
namespace {

int64_t pages_for(int64_t rows, int64_t page_rows) { return (rows + page_rows - 1) / page_rows; }

}  // namespace

KvCache::KvCache(Backend& backend, PagePool& pool, const KvShape& shape)
    : backend_(backend), pool_(pool), shape_(shape), layers_(static_cast<size_t>(shape.n_layers)) {
  require(shape.block == 0 || shape.page_rows % shape.block == 0,
          "KV cache: block {} does not divide a page of {} rows", shape.block, shape.page_rows);
  require(pool.page_bytes() == shape.page_bytes(), "KV cache: pages are of {} bytes, expected {}",
          pool.page_bytes(), shape.page_bytes());
  clear();
}

void KvCache::make_layer(Layer& layer, int64_t n_heads, int64_t max_pages) {
  layer.pages.assign(static_cast<size_t>(n_heads), {});
  layer.rows.assign(static_cast<size_t>(n_heads), 0);
  layer.rows_bound = 0;
  if (layer.table.view().dim(0) != n_heads) {
    layer.table = DeviceArray<void*, 2>(backend_, {n_heads, max_pages});
    layer.n_rows = DeviceArray<int32_t, 1>(backend_, {n_heads});
  }
}

void KvCache::clear() {
  const int64_t max_pages = std::max<int64_t>(1, pages_for(shape_.max_tokens, shape_.page_rows));
  const int64_t bounds_bytes = shape_.block == 0 ? 0
                                                 : shape_.n_kv_heads * max_pages *
                                                       (shape_.page_rows / shape_.block) *
                                                       shape_.head_dim * int64_t{sizeof(float)};
  for (Layer& layer : layers_) {
    make_layer(layer, shape_.n_kv_heads, max_pages);
    if (layer.bounds_min.bytes() != bounds_bytes) {
      layer.bounds_min = Buffer(backend_, bounds_bytes);
      layer.bounds_max = Buffer(backend_, bounds_bytes);
    }
    upload(layer);
  }
  n_tokens_ = 0;
  compacted_ = false;
}

void KvCache::upload(Layer& layer) {
  // The whole table at once: a copy to a GPU costs the same whatever little it carries.
  const View<void*, 2> table = layer.table.view();
  std::vector<void*> pages(static_cast<size_t>(table.size()));
  for (size_t h = 0; h < layer.pages.size(); ++h)
    for (size_t i = 0; i < layer.pages[h].size(); ++i)
      pages[h * static_cast<size_t>(table.dim(1)) + i] = layer.pages[h][i]->data();
  backend_.copy_in(table.data, pages.data(), static_cast<int64_t>(pages.size() * sizeof(void*)));
  const std::vector<int32_t> n_rows(layer.rows.begin(), layer.rows.end());
  backend_.copy_in(layer.n_rows.view().data, n_rows.data(),
                   static_cast<int64_t>(n_rows.size() * sizeof(int32_t)));
}

int64_t KvCache::bytes() const {
  int64_t n = 0;
  for (const Layer& layer : layers_)
    for (const auto& pages : layer.pages) n += static_cast<int64_t>(pages.size());
  return n * shape_.page_bytes();
}

int64_t KvCache::entry_bytes() const {
  int64_t n_rows = 0;
  for (const Layer& layer : layers_)
    n_rows = std::accumulate(layer.rows.begin(), layer.rows.end(), n_rows);
  return n_rows * (shape_.page_bytes() / shape_.page_rows);
}

double KvCache::mean_rows() const {
  double sum = 0, n_heads = 0;
  for (const Layer& layer : layers_) {
    sum = std::accumulate(layer.rows.begin(), layer.rows.end(), sum);
    n_heads += double(layer.rows.size());
  }
  return sum / n_heads;
}

void KvCache::reserve(int64_t n) {
  require(n_tokens_ + n <= shape_.max_tokens,
          "{} tokens do not fit a context of {}; shorten the prompt or generate fewer tokens",
          n_tokens_ + n, shape_.max_tokens);
  // All pages are taken before any is handed out, so that running out of memory changes nothing.
  const auto missing = [&](const Layer& layer, size_t h) {
    return std::max<int64_t>(0, pages_for(layer.rows[h] + n, shape_.page_rows) -
                                    static_cast<int64_t>(layer.pages[h].size()));
  };
  int64_t n_missing = 0;
  for (const Layer& layer : layers_)
    for (size_t h = 0; h < layer.rows.size(); ++h) n_missing += missing(layer, h);
  if (n_missing == 0) return;
  std::vector<PageRef> fresh;
  for (; n_missing > 0; --n_missing) fresh.push_back(pool_.take());
  for (Layer& layer : layers_) {
    for (size_t h = 0; h < layer.rows.size(); ++h) {
      for (int64_t i = missing(layer, h); i > 0; --i) {
        layer.pages[h].push_back(std::move(fresh.back()));
        fresh.pop_back();
      }
    }
    upload(layer);
  }
}

void KvCache::append(int l, const Act& k, const Act& v) {
  const KvLayer kv = grow(l, k.rows);
  backend_.run(AppendKv{.k = k, .v = v, .kv = {&kv, 1}, .bounds = bounds(l)});
}

KvLayer KvCache::grow(int l, int64_t n) {
  Layer& layer = layers_[static_cast<size_t>(l)];
  for (int64_t& rows : layer.rows) rows += n;
  layer.rows_bound += n;
  return this->layer(l);
}

KvLayer KvCache::layer(int l) const {
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const View<void*, 2> table = layer.table.view();
  return {.dtype = shape_.dtype,
          .head_dim = shape_.head_dim,
          .page_rows = shape_.page_rows,
          .pages = {table.data, table.dims},
          .n_rows = layer.n_rows.view(),
          .rows_bound = layer.rows_bound};
}

KeyBounds KvCache::bounds(int l) const {
  const Layer& layer = layers_[static_cast<size_t>(l)];
  if (layer.bounds_min.bytes() == 0) return {};
  const std::array<int64_t, 3> dims = {
      shape_.n_kv_heads, layer.table.view().dim(1) * (shape_.page_rows / shape_.block),
      shape_.head_dim};
  return {.min = {static_cast<float*>(layer.bounds_min.data()), dims},
          .max = {static_cast<float*>(layer.bounds_max.data()), dims},
          .block = shape_.block};
}

void KvCache::adopt(std::span<const std::vector<PageRef>> pages) {
  const int64_t n = static_cast<int64_t>(pages.size()) * shape_.page_rows;
  require(n_tokens_ == 0 && !compacted_ && n <= shape_.max_tokens,
          "KV cache: cannot take {} tokens over (has {}, room for {})", n, n_tokens_,
          shape_.max_tokens);
  const size_t n_heads = static_cast<size_t>(shape_.n_kv_heads);
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    for (size_t h = 0; h < n_heads; ++h)
      for (const auto& page : pages) layer.pages[h].push_back(page[l * n_heads + h]);
    std::fill(layer.rows.begin(), layer.rows.end(), n);
    layer.rows_bound = n;
    upload(layer);
  }
  n_tokens_ = n;
}

void KvCache::truncate(int64_t n) {
  require(!compacted_ && n <= n_tokens_ && n % shape_.page_rows == 0,
          "KV cache: cannot be cut to {} tokens (has {}, pages of {}, {})", n, n_tokens_,
          shape_.page_rows, compacted_ ? "compacted" : "not compacted");
  for (Layer& layer : layers_) {
    for (auto& pages : layer.pages) pages.resize(static_cast<size_t>(n / shape_.page_rows));
    std::fill(layer.rows.begin(), layer.rows.end(), n);
    layer.rows_bound = n;
    upload(layer);
  }
  n_tokens_ = n;
}

void KvCache::compact(int l, const Keep& keep) {
  Layer& old = layers_[static_cast<size_t>(l)];
  const int64_t n_heads = keep.count.dim(0);
  std::vector<int32_t> count(static_cast<size_t>(n_heads));
  backend_.copy_out(count.data(), keep.count.data, n_heads * int64_t{sizeof(int32_t)});

  Layer kept;
  make_layer(kept, n_heads, old.table.view().dim(1));
  for (size_t h = 0; h < count.size(); ++h)
    for (int64_t i = pages_for(count[h], shape_.page_rows); i > 0; --i)
      kept.pages[h].push_back(pool_.take());
  upload(kept);

  const KvLayer from = layer(l);
  std::swap(old, kept);
  old.rows.assign(count.begin(), count.end());
  old.rows_bound = *std::max_element(old.rows.begin(), old.rows.end());
  backend_.run(CompactKv{.from = from, .keep = keep, .to = layer(l)});
  compacted_ = true;
  for (Layer& layer : layers_) {
    layer.bounds_min = Buffer();
    layer.bounds_max = Buffer();
  }
}

}  // namespace ei
