#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "ei/cache/page_pool.h"
#include "ei/ops/backend.h"

namespace ei {

struct KvShape {
  int64_t n_layers = 0;
  int64_t n_kv_heads = 0;
  PageLayout layout;
  int64_t max_tokens = 0;  // the longest text the cache can hold

  // That n_tokens take.
  int64_t pages(int64_t n_tokens) const { return layout.pages(n_tokens) * n_kv_heads * n_layers; }
  // Of their K and V alone.
  int64_t entry_bytes(int64_t n_tokens) const {
    return n_tokens * 2 * layout.entry_bytes() * n_kv_heads * n_layers;
  }
  // Of the tables that say where the pages are and how many rows they hold, for n_heads a layer.
  int64_t table_bytes(int64_t n_heads) const {
    return n_layers * n_heads * (max_pages() * int64_t{sizeof(void*)} + int64_t{sizeof(int32_t)});
  }
  int64_t max_pages() const { return std::max<int64_t>(1, layout.pages(max_tokens)); }
};

// K and V of one sequence in all layers, and the bounds of its key blocks. Until it is compacted,
// row r of every head is the token at position r; afterwards heads hold different tokens, there are
// no bounds, and only appending and compacting again make sense.
//
// Appends go layer by layer: reserve() pages for the new tokens, append() to every layer (or grow()
// it and run one AppendKv for several sequences), then advance().
class KvCache {
 public:
  // The pool's pages may be larger than the shape's, whose bounds some caches do without.
  KvCache(Backend& backend, PagePool& pool, const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  PagePool& pool() const { return pool_; }
  int64_t page_bytes() const { return pool_.page_bytes(); }
  int64_t n_tokens() const { return n_tokens_; }  // of text seen, kept or not
  bool compacted() const { return compacted_; }
  int64_t rows(int layer, int64_t head) const {
    return layers_[static_cast<size_t>(layer)].rows[static_cast<size_t>(head)];
  }
  int64_t n_heads() const;      // of all layers
  int64_t n_rows() const;       // of all of them
  int64_t bytes() const;        // of the pages held
  int64_t full_bytes() const;   // of those that all of the text would take
  int64_t entry_bytes() const;  // of the rows in them

  // Makes room for n more tokens. Throws Error when they pass max_tokens or memory is short; the
  // cache is then as it was.
  void reserve(int64_t n);
  // Stores k and v [n, n_kv_heads * d], RoPE applied, and widens the key bounds.
  void append(int layer, const Act& k, const Act& v);
  // Counts n rows more in a layer, for an AppendKv of the caller's that gets what this returns.
  KvLayer grow(int layer, int64_t n);
  void advance(int64_t n) { n_tokens_ += n; }
  // Takes back what was appended since the last advance(). Throws Error when the device cannot be
  // told; the cache is then good for nothing but clear().
  void rewind();

  KvLayer layer(int layer) const;

  // Page i of a head of a cache that is not compacted, to be shared; null where tail_of() left it
  // out. Rows in it are written once.
  PageRef page(int layer, int64_t head, int64_t i) const {
    return layers_[static_cast<size_t>(layer)]
        .pages[static_cast<size_t>(head)][static_cast<size_t>(i)];
  }
  // Goes on with n tokens of another cache, after full pages: pages[i] are page i, counted from
  // n_tokens(), of every layer and head, [n_layers, n_kv_heads]. Full pages are shared, the rows of
  // a last one are copied, to be written on from: whole blocks, if their bounds matter. Throws
  // Error when they do not fit; the cache is then as it was.
  void adopt(std::span<const std::span<const PageRef>> pages, int64_t n);
  // Fills an empty cache with all tokens of another that is not compacted, as adopt() does.
  void fork(const KvCache& from);
  // Makes an empty cache the one that goes on with another's pages, the last included, from page
  // `first` on. The other is not to be written any more but by compact().
  void tail_of(const KvCache& from, int64_t first);

  // Keeps the first n tokens of a cache that is not compacted: whole pages, or some of one that is
  // not shared.
  void truncate(int64_t n);
  void clear();

  // Replaces a layer by the rows `keep` names; the pages it no longer needs are freed. `keep` has
  // as many heads as the layer or, once, a multiple: one set of rows per query head. `count` is
  // what keep.count holds on the device, which need not be waited for. After a failure the cache is
  // good for nothing but clear().
  void compact(int layer, const Keep& keep, std::span<const int32_t> count);

 private:
  struct Layer {
    std::vector<std::vector<PageRef>> pages;  // [n_heads][pages]
    std::vector<int64_t> rows;                // [n_heads], as n_rows on the device
    int64_t rows_bound = 0;
    int64_t n_tokens = 0;  // appended, which the cache counts once all layers have them
    int64_t n_heads() const { return static_cast<int64_t>(rows.size()); }
  };
  // Tells the device where the pages of n layers from `first` on are, and how many rows they hold.
  void upload(int64_t first, int64_t n);

  Backend& backend_;
  PagePool& pool_;
  KvShape shape_;
  int64_t n_tokens_ = 0;
  bool compacted_ = false;
  std::vector<Layer> layers_;
  DeviceArray<void*, 3> table_;     // [n_layers, heads of the widest, max_pages]
  DeviceArray<int32_t, 2> n_rows_;  // [n_layers, heads of the widest]
};

}  // namespace ei
