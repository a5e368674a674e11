#include "ei/cache/kv_cache.h"

#include <numeric>
#include <utility>

#include "ei/base/fail.h"

namespace ei {
namespace {

// [n_heads, max_pages] addresses, as a KvLayer has them.
void list_pages(const std::vector<std::vector<PageRef>>& pages, int64_t max_pages, void** to) {
  for (const auto& of_head : pages) {
    std::ranges::transform(of_head, to,
                           [](const PageRef& page) { return page ? page->data() : nullptr; });
    to += max_pages;
  }
}

}  // namespace

KvCache::KvCache(Backend& backend, PagePool& pool, const KvShape& shape)
    : backend_(backend), pool_(pool), shape_(shape), layers_(static_cast<size_t>(shape.n_layers)) {
  const PageLayout& layout = shape.layout;
  require(layout.block == 0 || layout.rows % layout.block == 0,
          "KV cache: block {} does not divide a page of {} rows", layout.block, layout.rows);
  require(pool.page_bytes() >= layout.bytes(),
          "KV cache: pages are of {} bytes, expected at least {}", pool.page_bytes(),
          layout.bytes());
  table_ = DeviceArray<void*, 3>(backend, {shape.n_layers, shape.n_kv_heads, shape.max_pages()});
  n_rows_ = DeviceArray<int32_t, 2>(backend, {shape.n_layers, shape.n_kv_heads});
  clear();
}

void KvCache::clear() {
  for (Layer& layer : layers_) {
    layer.pages.assign(static_cast<size_t>(shape_.n_kv_heads), {});
    layer.rows.assign(static_cast<size_t>(shape_.n_kv_heads), 0);
    layer.rows_bound = layer.n_tokens = 0;
  }
  n_tokens_ = 0;
  compacted_ = false;
  upload(0, shape_.n_layers);
}

// Whole tables at once: a copy to a GPU costs about the same whatever little it carries.
void KvCache::upload(int64_t first, int64_t n) {
  const View<void*, 3> table = table_.view().slice(first, n);
  const View<int32_t, 2> n_rows = n_rows_.view().slice(first, n);
  std::vector<void*> pages(static_cast<size_t>(table.size()));
  std::vector<int32_t> rows(static_cast<size_t>(n_rows.size()));
  for (int64_t i = 0; i < n; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(first + i)];
    std::copy(layer.rows.begin(), layer.rows.end(), rows.begin() + i * n_rows.dim(1));
    list_pages(layer.pages, table.dim(2), pages.data() + i * table.dim(1) * table.dim(2));
  }
  backend_.copy_in(table.data, pages.data(), table.size() * int64_t{sizeof(void*)});
  backend_.copy_in(n_rows.data, rows.data(), n_rows.size() * int64_t{sizeof(int32_t)});
}

int64_t KvCache::bytes() const {
  int64_t n = 0;
  for (const Layer& layer : layers_)
    for (const auto& pages : layer.pages)
      n += std::ssize(pages) - std::ranges::count(pages, nullptr);
  return n * pool_.page_bytes();
}

int64_t KvCache::full_bytes() const { return shape_.pages(n_tokens_) * pool_.page_bytes(); }

int64_t KvCache::entry_bytes() const { return n_rows() * 2 * shape_.layout.entry_bytes(); }

int64_t KvCache::n_heads() const {
  int64_t n = 0;
  for (const Layer& layer : layers_) n += std::ssize(layer.rows);
  return n;
}

int64_t KvCache::n_rows() const {
  int64_t n = 0;
  for (const Layer& layer : layers_) n = std::accumulate(layer.rows.begin(), layer.rows.end(), n);
  return n;
}

void KvCache::reserve(int64_t n) {
  require(n_tokens_ + n <= shape_.max_tokens,
          "{} tokens do not fit a context of {}; shorten the prompt or generate fewer tokens",
          n_tokens_ + n, shape_.max_tokens);
  // Everything is taken before anything is handed out, so that running out of memory changes
  // nothing.
  std::vector<PageRef> fresh;
  std::vector<std::vector<PageRef>*> lists;  // that get them
  for (Layer& layer : layers_)
    for (size_t h = 0; h < layer.rows.size(); ++h) {
      std::vector<PageRef>& pages = layer.pages[h];
      const int64_t n_pages = shape_.layout.pages(layer.rows[h] + n);
      if (n_pages <= std::ssize(pages)) continue;
      lists.insert(lists.end(), static_cast<size_t>(n_pages) - pages.size(), &pages);
      pages.reserve(static_cast<size_t>(n_pages));
    }
  if (lists.empty()) return;
  while (fresh.size() < lists.size()) fresh.push_back(pool_.take());
  for (size_t i = 0; i < lists.size(); ++i) lists[i]->push_back(std::move(fresh[i]));
  try {
    upload(0, shape_.n_layers);
  } catch (...) {
    for (std::vector<PageRef>* pages : lists) pages->pop_back();
    throw;
  }
}

void KvCache::append(int l, const Act& k, const Act& v) {
  const KvLayer kv = grow(l, k.rows);
  backend_.run(AppendKv{.k = k, .v = v, .kv = {&kv, 1}});
}

KvLayer KvCache::grow(int l, int64_t n) {
  Layer& layer = layers_[static_cast<size_t>(l)];
  for (int64_t& rows : layer.rows) rows += n;
  layer.rows_bound += n;
  layer.n_tokens += n;
  return this->layer(l);
}

void KvCache::rewind() {
  for (Layer& layer : layers_) {
    const int64_t n = std::exchange(layer.n_tokens, n_tokens_) - n_tokens_;
    for (int64_t& rows : layer.rows) rows -= n;
    layer.rows_bound -= n;
  }
  upload(0, shape_.n_layers);
}

KvLayer KvCache::layer(int l) const {
  const Layer& layer = layers_[static_cast<size_t>(l)];
  const View<void*, 2> table = table_.view()[l].slice(0, layer.n_heads());
  KvLayer kv = {.layout = shape_.layout,
                .pages = {table.data, table.dims},
                .n_rows = n_rows_.view()[l].slice(0, layer.n_heads()),
                .rows_bound = layer.rows_bound};
  if (compacted_) kv.layout.block = 0;  // rows of a block are no neighbours any more
  return kv;
}

void KvCache::adopt(std::span<const std::span<const PageRef>> pages, int64_t n_more) {
  const int64_t n = n_tokens_ + n_more, n_full = n_more / shape_.layout.rows;
  require(n_tokens_ % shape_.layout.rows == 0 && !compacted_ && n <= shape_.max_tokens &&
              std::ssize(pages) == shape_.layout.pages(n_more),
          "KV cache: cannot take {} tokens over (has {}, room for {})", n_more, n_tokens_,
          shape_.max_tokens);
  const auto n_heads = static_cast<size_t>(shape_.n_kv_heads);
  std::vector<PageRef> last;  // [n_layers, n_kv_heads] copies
  for (size_t i = 0; n_full < std::ssize(pages) && i < pages.back().size(); ++i) {
    last.push_back(pool_.take());
    backend_.copy_in(last[i]->data(), pages.back()[i]->data(), shape_.layout.bytes());
  }
  const auto keep = [&](int64_t n_tokens) noexcept {
    for (Layer& layer : layers_) {
      for (auto& of_head : layer.pages)
        of_head.resize(
            std::min(of_head.size(), static_cast<size_t>(shape_.layout.pages(n_tokens))));
      std::fill(layer.rows.begin(), layer.rows.end(), n_tokens);
      layer.rows_bound = layer.n_tokens = n_tokens;
    }
  };
  keep(n_tokens_);
  try {
    for (size_t l = 0; l < layers_.size(); ++l)
      for (size_t h = 0; h < n_heads; ++h) {
        std::vector<PageRef>& of_head = layers_[l].pages[h];
        for (const auto& page : pages.first(static_cast<size_t>(n_full)))
          of_head.push_back(page[l * n_heads + h]);
        if (!last.empty()) of_head.push_back(last[l * n_heads + h]);
      }
    keep(n);
    upload(0, shape_.n_layers);
  } catch (...) {
    keep(n_tokens_);
    throw;
  }
  n_tokens_ = n;
}

void KvCache::fork(const KvCache& from) {
  require(!from.compacted_, "KV cache: a compacted cache cannot be forked");
  std::vector<std::vector<PageRef>> pages(static_cast<size_t>(shape_.layout.pages(from.n_tokens_)));
  for (size_t i = 0; i < pages.size(); ++i)
    for (const Layer& layer : from.layers_)
      for (const auto& of_head : layer.pages) pages[i].push_back(of_head[i]);
  adopt(std::vector<std::span<const PageRef>>(pages.begin(), pages.end()), from.n_tokens_);
}

void KvCache::tail_of(const KvCache& from, int64_t first) {
  require(!from.compacted_, "KV cache: of a compacted cache no tail is left");
  layers_ = from.layers_;
  n_tokens_ = from.n_tokens_;
  for (Layer& layer : layers_)
    for (auto& of_head : layer.pages)
      std::fill_n(of_head.begin(), std::min<int64_t>(first, std::ssize(of_head)), nullptr);
  upload(0, shape_.n_layers);
}

void KvCache::truncate(int64_t n) {
  const int64_t page = n / shape_.layout.rows;
  require(!compacted_ && n <= n_tokens_ &&
              (n % shape_.layout.rows == 0 || this->page(0, 0, page).use_count() <= 2),
          "KV cache: cannot be cut to {} tokens (has {}, pages of {}, {})", n, n_tokens_,
          shape_.layout.rows, compacted_ ? "compacted" : "not compacted");
  for (Layer& layer : layers_) {
    for (auto& pages : layer.pages) pages.resize(static_cast<size_t>(shape_.layout.pages(n)));
    std::fill(layer.rows.begin(), layer.rows.end(), n);
    layer.rows_bound = layer.n_tokens = n;
  }
  n_tokens_ = n;
  upload(0, shape_.n_layers);
}

void KvCache::compact(int l, const Keep& keep, std::span<const int32_t> count) {
  const int64_t n_heads = keep.count.dim(0);
  Layer kept;
  kept.n_tokens = n_tokens_;
  kept.rows.assign(count.begin(), count.end());
  kept.rows_bound = *std::max_element(count.begin(), count.end());
  kept.pages.resize(count.size());
  for (size_t h = 0; h < count.size(); ++h)
    for (int64_t i = shape_.layout.pages(count[h]); i > 0; --i)
      kept.pages[h].push_back(pool_.take());

  // The rows go to their new pages by tables of their own: the layer's still say where they are.
  const DeviceArray<void*, 2> table(backend_, {n_heads, shape_.max_pages()});
  const DeviceArray<int32_t, 1> n_rows(backend_, {n_heads});
  std::vector<void*> pages(static_cast<size_t>(table.view().size()));
  list_pages(kept.pages, shape_.max_pages(), pages.data());
  backend_.copy_in(table.view().data, pages.data(), std::ssize(pages) * int64_t{sizeof(void*)});
  const KvLayer from = layer(l);
  KvLayer to = from;
  to.pages = {table.view().data, table.view().dims};
  to.n_rows = n_rows.view();
  to.rows_bound = kept.rows_bound;
  backend_.run(CompactKv{.from = from, .keep = keep, .to = to});

  std::swap(layers_[static_cast<size_t>(l)], kept);
  compacted_ = true;
  if (n_heads > table_.view().dim(1)) {  // one set of rows per query head from now on
    table_ = DeviceArray<void*, 3>(backend_, {shape_.n_layers, n_heads, shape_.max_pages()});
    n_rows_ = DeviceArray<int32_t, 2>(backend_, {shape_.n_layers, n_heads});
    upload(0, shape_.n_layers);
  } else {
    upload(l, 1);
  }
}

}  // namespace ei
