#pragma once

#include <span>
#include <vector>

#include "ei/cache/page_pool.h"
#include "ei/ops/backend.h"

namespace ei {

struct KvShape {
  int64_t n_layers = 0;
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;
  DType dtype = DType::kBF16;  // kBF16 or kF32
  int64_t page_rows = 512;     // one segment
  int64_t block = 0;           // tokens per key bound; 0: none are kept
  int64_t max_tokens = 0;      // the longest text the cache can hold

  int64_t page_bytes() const { return 2 * page_rows * head_dim * dtype_bytes(dtype); }
  // Of K and V for n_tokens in every head: whole pages, as they are allocated.
  int64_t bytes(int64_t n_tokens) const {
    return (n_tokens + page_rows - 1) / page_rows * page_bytes() * n_kv_heads * n_layers;
  }
  // The same without what the last pages leave free.
  int64_t entry_bytes(int64_t n_tokens) const {
    return n_tokens * page_bytes() / page_rows * n_kv_heads * n_layers;
  }
};

// K and V of one sequence in all layers, and the bounds of its key blocks. Until it is compacted,
// row r of every head is the token at position r; afterwards heads hold different tokens and only
// appending and compacting again make sense.
//
// Appends go layer by layer: reserve() pages for the new tokens, append() to every layer (or grow()
// it and run one AppendKv for several sequences), then advance().
class KvCache {
 public:
  KvCache(Backend& backend, PagePool& pool, const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  int64_t n_tokens() const { return n_tokens_; }  // of text seen, kept or not
  bool compacted() const { return compacted_; }
  int64_t rows(int layer, int64_t head) const {
    return layers_[static_cast<size_t>(layer)].rows[static_cast<size_t>(head)];
  }
  double mean_rows() const;     // of the heads of all layers
  int64_t bytes() const;        // of the pages held
  int64_t entry_bytes() const;  // of the rows in them

  // Makes room for n more tokens. Throws Error when they pass max_tokens or memory is short; the
  // cache is then as it was.
  void reserve(int64_t n);
  // Stores k and v [n, n_kv_heads * d], RoPE applied, and extends the key bounds.
  void append(int layer, const Act& k, const Act& v);
  // Counts n rows more in a layer, for an AppendKv of the caller's that gets what this returns.
  KvLayer grow(int layer, int64_t n);
  void advance(int64_t n) { n_tokens_ += n; }

  KvLayer layer(int layer) const;
  KeyBounds bounds(int layer) const;

  // Page i of a head of a cache that is not compacted, to be shared. Rows in it are written once.
  PageRef page(int layer, int64_t head, int64_t i) const {
    return layers_[static_cast<size_t>(layer)]
        .pages[static_cast<size_t>(head)][static_cast<size_t>(i)];
  }
  // Fills an empty cache with full pages of another: pages[i] are page i of every layer and head,
  // [n_layers, n_kv_heads]. Their key bounds are the caller's to restore.
  void adopt(std::span<const std::vector<PageRef>> pages);

  // Keeps the first n tokens, a multiple of page_rows, of a cache that is not compacted.
  void truncate(int64_t n);
  void clear();

  // Replaces a layer by the rows `keep` names; the pages it no longer needs are freed. `keep` has
  // as many heads as the layer or, once, a multiple: one set of rows per query head. The key bounds
  // of all layers are dropped with the first.
  void compact(int layer, const Keep& keep);

 private:
  struct Layer {
    std::vector<std::vector<PageRef>> pages;  // [n_heads][pages]
    std::vector<int64_t> rows;                // [n_heads], as n_rows on the device
    int64_t rows_bound = 0;
    DeviceArray<void*, 2> table;  // [n_heads, max_pages]
    DeviceArray<int32_t, 1> n_rows;
    Buffer bounds_min, bounds_max;
  };
  void upload(Layer& layer);
  void make_layer(Layer& layer, int64_t n_heads, int64_t max_pages);

  Backend& backend_;
  PagePool& pool_;
  KvShape shape_;
  int64_t n_tokens_ = 0;
  bool compacted_ = false;
  std::vector<Layer> layers_;
};

}  // namespace ei
