#include "ei/cache/kv_cache.h"

#include "ei/ops/buffer.h"
#include "tests/cache/cache_fixture.h"

namespace ei::test {
namespace {

using KvCacheTest = CacheTest;

std::vector<std::vector<PageRef>> pages_of(const KvCache& cache, int64_t n_pages) {
  std::vector<std::vector<PageRef>> pages(static_cast<size_t>(n_pages));
  for (int64_t i = 0; i < n_pages; ++i)
    for (int l = 0; l < cache.shape().n_layers; ++l)
      for (int64_t h = 0; h < cache.shape().n_kv_heads; ++h)
        pages[static_cast<size_t>(i)].push_back(cache.page(l, h, i));
  return pages;
}

std::vector<std::span<const PageRef>> spans(const std::vector<std::vector<PageRef>>& pages) {
  return {pages.begin(), pages.end()};
}

// Keeps the rows of every head, [heads][rows], in a layer.
void compact(Backend& backend, KvCache& cache, int layer,
             const std::vector<std::vector<int32_t>>& rows) {
  std::vector<int32_t> flat, count;
  size_t most = 0;
  for (const auto& of_head : rows) most = std::max(most, of_head.size());
  for (const auto& of_head : rows) {
    flat.insert(flat.end(), of_head.begin(), of_head.end());
    flat.resize(flat.size() + most - of_head.size(), -1);
    count.push_back(int32_t(of_head.size()));
  }
  const DeviceArray<int32_t, 1> all(backend, flat), counts(backend, count);
  cache.compact(layer, {{all.view().data, {std::ssize(rows), int64_t(most)}}, counts.view()},
                count);
}

TEST_F(KvCacheTest, CountsWhatItHolds) {
  KvCache c = cache();
  EXPECT_EQ(c.bytes(), 0);
  feed(c, kRows + 1);
  const int64_t n_pages = 2 * kLayers * kHeads;
  EXPECT_EQ(c.bytes(), n_pages * shape.layout.bytes());
  EXPECT_EQ(c.bytes(), c.full_bytes());
  EXPECT_EQ(pool.bytes_in_use(), c.bytes());
  // Two bytes a number; 8 rows of bounds to 32 of K and V.
  EXPECT_EQ(shape.layout.bytes(), (2 * kRows + 2 * kRows / kBlock) * kHeadDim * 2);
  EXPECT_EQ(c.entry_bytes(), (kRows + 1) * 2 * kLayers * kHeads * kHeadDim * 2);
  c.clear();
  EXPECT_EQ(pool.bytes_in_use(), 0);
  EXPECT_EQ(c.n_tokens(), 0);
}

TEST_F(KvCacheTest, SharedPagesLiveAsLongAsTheirLastCache) {
  const auto want = fresh_contents(2 * kRows);
  KvCache a = cache(), b = cache();
  feed(a, 2 * kRows + 3);
  const int64_t held = pool.bytes_in_use();
  backend.n_copies = 0;
  b.adopt(spans(pages_of(a, 2)), 2 * kRows);
  EXPECT_EQ(backend.n_copies, 2);  // where pages are and how many rows they hold: nothing in them
  EXPECT_EQ(pool.bytes_in_use(), held);
  EXPECT_EQ(contents(b), want);
  // Both go on, each in pages of its own.
  feed(a, 5);
  feed(b, 7);
  EXPECT_EQ(contents(a), fresh_contents(2 * kRows + 8));
  EXPECT_EQ(contents(b), fresh_contents(2 * kRows + 7));
  a.clear();
  EXPECT_EQ(contents(b), fresh_contents(2 * kRows + 7));
  EXPECT_EQ(pool.bytes_in_use(), b.bytes());
  b.truncate(kRows);
  EXPECT_EQ(pool.bytes_in_use(), kLayers * kHeads * shape.layout.bytes());
  b.clear();
  EXPECT_EQ(pool.bytes_in_use(), 0);
}

// Of a last page the rows are copied, with the bounds of their blocks, and both go on from there.
TEST_F(KvCacheTest, GoesOnInTheMiddleOfAPage) {
  KvCache a = cache(), b = cache(), tail = cache();
  feed(a, 2 * kRows + 8);
  const auto pages = pages_of(a, 3);
  b.adopt(spans(pages), 2 * kRows + 8);
  tail.tail_of(a, 1);
  a.clear();  // what goes on with its last page is the only one that does
  for (KvCache* c : {&b, &tail}) {
    feed(*c, 30);
    EXPECT_EQ(c->n_tokens(), 2 * kRows + 38);
  }
  EXPECT_EQ(contents(b), fresh_contents(2 * kRows + 38));
  EXPECT_EQ(tail.page(0, 0, 0), nullptr);
  for (const int64_t i : {2, 3})
    EXPECT_TRUE(std::equal(row(b.layer(1), 1, i, 0), row(b.layer(1), 1, i, 0) + kHeadDim,
                           row(tail.layer(1), 1, i, 0)));
  EXPECT_EQ(tail.bytes(), b.bytes() - kLayers * kHeads * shape.layout.bytes());
}

TEST_F(KvCacheTest, GoesOnAfterACutAsIfItHadReadNoMore) {
  KvCache c = cache();
  feed(c, 3 * kRows + 5);
  c.truncate(2 * kRows);
  EXPECT_EQ(contents(c), fresh_contents(2 * kRows));
  for (const int64_t n : {1, 1, 9, 30}) feed(c, n);
  EXPECT_EQ(contents(c), fresh_contents(2 * kRows + 41));
  c.truncate(0);
  feed(c, 3);
  EXPECT_EQ(contents(c), fresh_contents(3));
}

TEST_F(KvCacheTest, CompactsLayerByLayer) {
  const std::vector<std::vector<int32_t>> keep[] = {{{0, 1, 20, 33}, {2}},
                                                    {{5, 6}, {0, 1, 2, 3, 4, 30, 31, 32, 33, 34}}};
  KvCache c = cache(), whole = cache();
  feed(c, 35);
  feed(whole, 35);
  for (int l = 0; l < kLayers; ++l) compact(backend, c, l, keep[l]);
  EXPECT_TRUE(c.compacted());
  EXPECT_EQ(c.n_tokens(), 35);
  EXPECT_EQ(c.bytes(), kLayers * kHeads * shape.layout.bytes());
  EXPECT_EQ(pool.bytes_in_use(), c.bytes() + whole.bytes());
  for (int l = 0; l < kLayers; ++l) {
    const KvLayer kept = c.layer(l), all = whole.layer(l);
    EXPECT_EQ(kept.layout.block, 0);
    for (int64_t h = 0; h < kHeads; ++h) {
      const auto& rows = keep[l][size_t(h)];
      ASSERT_EQ(kept.n_rows[h], std::ssize(rows));
      for (int64_t i = 0; i < std::ssize(rows); ++i) {
        const int64_t r = rows[size_t(i)];
        for (const int64_t first : {int64_t{0}, kept.layout.first_value()})
          EXPECT_TRUE(std::equal(row(kept, h, 0, first + i), row(kept, h, 0, first + i) + kHeadDim,
                                 row(all, h, r / kRows, first + r % kRows)));
      }
    }
  }
  // Appends go behind what was kept, head by head, and pages begin where they must.
  feed(c, 9);
  EXPECT_EQ(c.rows(1, 0), 11);
  EXPECT_EQ(c.rows(1, 1), 19);
  EXPECT_EQ(c.bytes(), (kLayers * kHeads + 1) * shape.layout.bytes());
  const KvLayer kv = c.layer(1);
  feed(whole, 9);
  EXPECT_TRUE(std::equal(row(kv, 1, 1, 2), row(kv, 1, 1, 2) + kHeadDim,
                         row(whole.layer(1), 1, 2, 43 % kRows)));
  // And from the start it is a cache like any other.
  c.clear();
  feed(c, 20);
  EXPECT_EQ(contents(c), fresh_contents(20));
}

// One set of rows per query head: the first compaction widens the tables of all layers.
TEST_F(KvCacheTest, CompactsToMoreHeads) {
  KvCache c = cache(), whole = cache();
  feed(c, 40);
  feed(whole, 40);
  compact(backend, c, 0, {{39}, {1, 2}, {17}, {3, 38}});
  const KvLayer wide = c.layer(0);
  ASSERT_EQ(wide.n_kv_heads(), 4);
  for (const auto& [head, i, r] : {std::array{0, 0, 39}, {1, 1, 2}, {2, 0, 17}, {3, 1, 38}})
    EXPECT_TRUE(std::equal(row(wide, head, 0, i), row(wide, head, 0, i) + kHeadDim,
                           row(whole.layer(0), head / 2, r / kRows, r % kRows)));
  ASSERT_EQ(c.layer(1).n_kv_heads(), kHeads);
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t r = 0; r < 40; ++r)
      EXPECT_TRUE(std::equal(row(c.layer(1), h, r / kRows, r % kRows),
                             row(c.layer(1), h, r / kRows, r % kRows) + kHeadDim,
                             row(whole.layer(1), h, r / kRows, r % kRows)));
  c.clear();
  feed(c, 20);
  EXPECT_EQ(contents(c), fresh_contents(20));
}

// A compacted cache's pages have room for bounds that nothing touches.
TEST_F(KvCacheTest, KeepsNoBoundsOnceCompacted) {
  KvCache c = cache();
  feed(c, 20);
  for (int l = 0; l < kLayers; ++l) compact(backend, c, l, {{0, 19}, {4, 5}});
  const KvLayer kv = c.layer(0);
  auto* bounds = static_cast<uint16_t*>(kv.pages[0][0]) + shape.layout.first_lowest() * kHeadDim;
  const int64_t n = 2 * shape.layout.n_blocks() * kHeadDim;
  std::fill_n(bounds, n, uint16_t{0x1234});
  feed(c, 10);
  EXPECT_EQ(std::count(bounds, bounds + n, 0x1234), n);
}

// Whatever call fails, the cache is as it was, nothing is lost, and the next try succeeds.
TEST_F(KvCacheTest, ReserveThatFailsChangesNothing) {
  for (int64_t k = 0;; ++k) {
    PagePool own(backend, shape.layout.bytes());
    KvCache c(backend, own, shape);
    feed(c, kRows - 2);
    const auto before = contents(c);
    const int64_t in_use = own.bytes_in_use();
    // The pool is empty now, and has to ask for more.
    std::vector<PageRef> others;
    for (int64_t i = (int64_t{32} << 20) / shape.layout.bytes() - kLayers * kHeads; i > 0; --i)
      others.push_back(own.take());
    backend.calls_left = k;
    bool failed = false;
    try {
      c.reserve(2 * kRows);
    } catch (const Error&) {
      failed = true;
    }
    backend.calls_left = INT64_MAX;
    others.clear();
    if (failed) {
      EXPECT_EQ(own.bytes_in_use(), in_use) << k;
    }
    EXPECT_EQ(contents(c), before) << k;
    feed(c, 2 * kRows);
    EXPECT_EQ(contents(c), fresh_contents(3 * kRows - 2)) << k;
    if (!failed) {
      EXPECT_EQ(k, 3);  // a slab, two tables
      break;
    }
  }
  KvCache c = cache();
  feed(c, 100);
  EXPECT_THROW(c.reserve(29), Error);  // beyond max_tokens
  c.reserve(28);
}

TEST_F(KvCacheTest, AdoptThatFailsLeavesAnEmptyCache) {
  KvCache a = cache(), b = cache();
  feed(a, 2 * kRows);
  const auto pages = pages_of(a, 2);
  for (const int64_t k : {0, 1}) {
    backend.calls_left = k;
    EXPECT_THROW(b.adopt(spans(pages), 2 * kRows), Error);
    backend.calls_left = INT64_MAX;
    EXPECT_EQ(b.n_tokens(), 0);
    EXPECT_EQ(b.bytes(), 0);
  }
  b.adopt(spans(pages), 2 * kRows);
  EXPECT_EQ(contents(b), contents(a));
  b.adopt(spans(pages), 2 * kRows);  // goes on behind what it holds
  EXPECT_EQ(b.n_tokens(), 4 * kRows);
}

}  // namespace
}  // namespace ei::test
