#include <gtest/gtest.h>

#include <numeric>

#include "ei/cache/prefix_cache.h"
#include "ei/cpu/backend.h"
#include "ei/cuda/backend.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"
#include "tests/support/probed_backend.h"

namespace ei::test {
namespace {

// Prefixes whose pages hold a function of text, position, layer and head: on a processor beside
// which there is memory that is copied as late as can be, and on a GPU.
class HostTierTest : public testing::TestWithParam<std::string> {
 protected:
  static constexpr int64_t kLayers = 2, kHeads = 2, kPage = 16, kSegment = 8, kMaxPages = 48,
                           kWidth = 3;
  static constexpr int64_t kOfEntry = kLayers * kHeads;  // pages

  static PrefillPolicy policy() {
    PrefillPolicy policy;
    policy.segment = kSegment;
    policy.block = 4;
    return policy;
  }
  void SetUp() override {
    if (GetParam() == "cuda" && !cuda_available())
      GTEST_SKIP() << "this machine has no GPU that the kernels run on";
    backend.emplace(GetParam() == "cuda" ? make_cuda_backend() : make_cpu_backend(1));
    backend->has_host = GetParam() != "cuda";
    pool.emplace(*backend, shape.layout.bytes());
    entropies = DeviceArray<float, 2>(*backend, {kMaxPages * kPage / kSegment, kWidth});
  }

  static std::vector<int32_t> text(int32_t seed, int64_t n) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    std::iota(tokens.begin(), tokens.end(), seed * 10000);
    return tokens;
  }
  int64_t entry_bytes() const {
    return kOfEntry * pool->page_bytes() + kPage * int64_t{sizeof(int32_t)} +
           kPage / kSegment * kWidth * int64_t{sizeof(float)};
  }
  std::unique_ptr<PagePool> host_pool(int64_t n_entries) {
    return std::make_unique<PagePool>(*backend->host_memory(), pool->page_bytes(),
                                      n_entries * kOfEntry * pool->page_bytes());
  }
  std::vector<char> bytes_of(int32_t seed, int64_t page, int64_t layer, int64_t head) const {
    std::vector<char> bytes(static_cast<size_t>(pool->page_bytes()));
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<char>(seed * 31 + page * 7 + layer * 3 + head + int64_t(i) % 101);
    return bytes;
  }
  void read(KvCache& cache, int32_t seed, int64_t n) {
    cache.reserve(n);
    cache.advance(n);
    for (int l = 0; l < kLayers; ++l) {
      cache.grow(l, n);
      for (int64_t h = 0; h < kHeads; ++h)
        for (int64_t i = 0; i < shape.layout.pages(n); ++i)
          backend->copy_in(cache.page(l, h, i)->data(), bytes_of(seed, i, l, h).data(),
                           pool->page_bytes());
    }
    std::vector<float> values(size_t(entropies.view().size()));
    std::iota(values.begin(), values.end(), float(seed));
    backend->copy_in(entropies.view().data, values.data(), std::ssize(values) * 4);
  }
  void remember(PrefixCache& prefixes, int32_t seed, int64_t n, std::vector<int64_t> asked = {}) {
    KvCache cache(*backend, *pool, shape);
    read(cache, seed, n);
    prefixes.remember(text(seed, n), n, n, policy(), cache, entropies.view(), asked);
  }
  // Pages that are free are written to, as by whoever takes them next.
  void use_free_pages() {
    std::vector<PageRef> pages;
    const std::vector<char> other(static_cast<size_t>(pool->page_bytes()), 0x55);
    while (pool->n_free() > 0) {
      pages.push_back(pool->take());
      backend->copy_in(pages.back()->data(), other.data(), pool->page_bytes());
    }
  }
  // That the cache holds n tokens of that text and nothing else. The device is written to first: it
  // has no more time than it would have.
  void expect_read(const KvCache& cache, int32_t seed, int64_t n) {
    use_free_pages();
    ASSERT_EQ(cache.n_tokens(), n);
    std::vector<char> got(static_cast<size_t>(pool->page_bytes()));
    for (int l = 0; l < kLayers; ++l)
      for (int64_t h = 0; h < kHeads; ++h)
        for (int64_t i = 0; i < shape.layout.pages(n); ++i) {
          backend->copy_out(got.data(), cache.page(l, h, i)->data(), pool->page_bytes());
          EXPECT_EQ(got, bytes_of(seed, i, l, h)) << l << " " << h << " " << i;
        }
    const std::vector<float> values = entropies.to_host(*backend);
    for (int64_t i = 0; i < n / kSegment * kWidth; ++i)
      EXPECT_EQ(values[size_t(i)], float(seed) + float(i));
  }
  PrefixCache::Hit restore(PrefixCache& prefixes, KvCache& cache, int32_t seed, int64_t n,
                           int64_t max_loads = INT64_MAX) {
    std::vector<int64_t> asked(static_cast<size_t>(cache.n_tokens() / kPage));
    return prefixes.restore(text(seed, n + kPage), n, policy(), cache, entropies.view(), asked,
                            max_loads);
  }
  void expect_found(PrefixCache& prefixes, int32_t seed, int64_t n, int64_t n_host) {
    KvCache cache(*backend, *pool, shape);
    const PrefixCache::Hit hit = restore(prefixes, cache, seed, n);
    EXPECT_EQ(hit.n_host, n_host);
    EXPECT_FALSE(hit.more);
    expect_read(cache, seed, n);
  }

  const KvShape shape{.n_layers = kLayers,
                      .n_kv_heads = kHeads,
                      .layout = {.head_dim = 8, .rows = kPage, .block = 4},
                      .max_tokens = kMaxPages * kPage};
  std::optional<ProbedBackend> backend;
  std::optional<PagePool> pool;
  DeviceArray<float, 2> entropies;
};

TEST_P(HostTierTest, WhatTheDeviceHasNoRoomForComesBackFromTheHost) {
  const auto host = host_pool(8);
  PrefixCache prefixes(*backend, 3 * entry_bytes(), host.get());
  remember(prefixes, 1, 5 * kPage);
  EXPECT_EQ(prefixes.bytes(), 3 * entry_bytes());
  EXPECT_EQ(prefixes.host_bytes(), 2 * entry_bytes());
  EXPECT_EQ(host->bytes_in_use(), 2 * kOfEntry * pool->page_bytes());
  use_free_pages();
  expect_found(prefixes, 1, 3 * kPage, 0);  // the ends left first
  for (int i = 0; i < 3; ++i) {             // and again, as others are demoted for them
    expect_found(prefixes, 1, 5 * kPage, 2 * kPage);
    EXPECT_EQ(prefixes.bytes(), 3 * entry_bytes());
    EXPECT_EQ(prefixes.host_bytes(), 2 * entry_bytes());
    use_free_pages();
  }
  // Of a device without room of its own all of it lies there.
  PrefixCache none(*backend, 0, host.get());
  remember(none, 2, 4 * kPage);
  use_free_pages();
  EXPECT_EQ(none.bytes(), 0);
  expect_found(none, 2, 4 * kPage, 4 * kPage);
  none.clear();
  prefixes.clear();
  EXPECT_EQ(host->bytes_in_use(), 0);
  EXPECT_EQ(pool->bytes_in_use(), 0);
}

TEST_P(HostTierTest, ForgetsWhatWasUsedLongestAgo) {
  const auto host = host_pool(4);
  PrefixCache prefixes(*backend, 2 * entry_bytes(), host.get());
  for (const int32_t seed : {1, 2, 3}) remember(prefixes, seed, 2 * kPage);  // 3 on the device
  expect_found(prefixes, 1, 2 * kPage, 2 * kPage);                           // and 3 leaves it
  remember(prefixes, 4, kPage);  // leaves no room for the end of 1, and that for none of 2's
  KvCache cache(*backend, *pool, shape);
  const PrefixCache::Hit hit = restore(prefixes, cache, 2, 2 * kPage);
  EXPECT_EQ(hit.n_tokens, kPage);
  EXPECT_EQ(hit.stopped_by, "evicted from token 16 on");
  expect_read(cache, 2, kPage);
  expect_found(prefixes, 3, 2 * kPage, 2 * kPage);
  EXPECT_LE(prefixes.bytes(), 2 * entry_bytes());
  EXPECT_LE(host->bytes_in_use(), 4 * kOfEntry * pool->page_bytes());
}

// Some pages beside each step, until all are there.
TEST_P(HostTierTest, ComesInSteps) {
  constexpr int64_t n = 20 * kPage;
  const auto host = host_pool(24);
  PrefixCache prefixes(*backend, 0, host.get());
  remember(prefixes, 1, n);
  KvCache cache(*backend, *pool, shape);
  int64_t n_host = 0;
  for (int64_t step = 1; step <= 2; ++step) {
    const PrefixCache::Hit hit = restore(prefixes, cache, 1, n + kPage, /*max_loads=*/1);
    EXPECT_TRUE(hit.more);
    EXPECT_EQ(cache.n_tokens(), step * PrefixCache::kHostLoads * kPage);
    n_host += hit.n_host;
  }
  const PrefixCache::Hit hit = restore(prefixes, cache, 1, n, 1);
  EXPECT_FALSE(hit.more);  // nothing can follow: they were waited for
  EXPECT_EQ(n_host + hit.n_host, n);
  expect_read(cache, 1, n);
  // Where more could follow, there is a step for those on their way.
  KvCache again(*backend, *pool, shape);
  EXPECT_TRUE(restore(prefixes, again, 1, n + kPage, 100).more);
  EXPECT_FALSE(restore(prefixes, again, 1, n + kPage, 100).more);
  expect_read(again, 1, n);
  // Whoever gives up leaves nothing behind that others could be hurt by.
  prefixes.clear();
  remember(prefixes, 1, n);
  std::optional<KvCache> gone(std::in_place, *backend, *pool, shape);
  EXPECT_TRUE(restore(prefixes, *gone, 1, n, 1).more);
  gone.reset();
  use_free_pages();
  expect_found(prefixes, 1, n, n - PrefixCache::kHostLoads * kPage);
  EXPECT_EQ(prefixes.bytes(), 0);
}

// A long text leaves the device by and by, however little comes next.
TEST_P(HostTierTest, LeavesInSteps) {
  constexpr int64_t n = (PrefixCache::kMaxDemoted + 8) * kPage;
  const auto host = host_pool(48);
  PrefixCache prefixes(*backend, 2 * entry_bytes(), host.get());
  remember(prefixes, 1, n);
  EXPECT_EQ(prefixes.host_bytes(), PrefixCache::kMaxDemoted * entry_bytes());
  EXPECT_EQ(prefixes.bytes(), 8 * entry_bytes());
  remember(prefixes, 2, kPage);
  EXPECT_EQ(prefixes.host_bytes(), (PrefixCache::kMaxDemoted + 7) * entry_bytes());
  EXPECT_EQ(prefixes.bytes(), 2 * entry_bytes());
  use_free_pages();
  expect_found(prefixes, 1, n, n - kPage);
}

// A part of a page is copied on the device, once it has come.
TEST_P(HostTierTest, AnAnswersEndComesBackAsWell) {
  const auto host = host_pool(8);
  PrefixCache prefixes(*backend, 0, host.get());
  const int64_t n = 2 * kPage + kSegment + 1;
  remember(prefixes, 1, n, {0, 0, n - 3});
  for (const int64_t max_loads : {INT64_MAX, int64_t{1}}) {
    KvCache cache(*backend, *pool, shape);
    std::vector<int64_t> asked;
    const PrefixCache::Hit hit = prefixes.restore(text(1, n + kPage), n + kPage - 1, policy(),
                                                  cache, entropies.view(), asked, max_loads);
    EXPECT_FALSE(hit.more);
    EXPECT_EQ(hit.n_tokens, n - 1);
    expect_read(cache, 1, n - 1);
  }
}

// Whatever fails: nobody hears of a demotion, a restore throws and changes nothing, and all memory
// is given back.
TEST_P(HostTierTest, FailuresHurtNobody) {
  if (GetParam() == "cuda") GTEST_SKIP() << "its copies cannot be made to fail";
  const auto host = host_pool(8);
  for (int64_t k = 0; k < 4; ++k) {
    PrefixCache prefixes(*backend, 2 * entry_bytes(), host.get());
    {
      KvCache cache(*backend, *pool, shape);
      read(cache, 1, 5 * kPage);
      backend->calls_left = k + 1;  // behind the entropies
      prefixes.remember(text(1, 5 * kPage), 5 * kPage, 5 * kPage, policy(), cache, entropies.view(),
                        {});
      backend->calls_left = INT64_MAX;
    }
    use_free_pages();
    EXPECT_EQ(prefixes.bytes(), 2 * entry_bytes());
    EXPECT_EQ(prefixes.host_bytes(),
              host->bytes_in_use() / (kOfEntry * pool->page_bytes()) * entry_bytes());
    EXPECT_EQ(prefixes.host_bytes(), (k < 3 ? 2 : 3) * entry_bytes());
  }
  PrefixCache prefixes(*backend, 0, host.get());
  remember(prefixes, 1, 5 * kPage);
  bool failed = true;
  int64_t n_failed = 0;
  for (int64_t k = 0; failed; ++k, ++n_failed) {
    KvCache cache(*backend, *pool, shape);
    backend->calls_left = k;
    failed = error_of([&] { restore(prefixes, cache, 1, 5 * kPage); }) != "";
    backend->calls_left = INT64_MAX;
    if (failed) {
      EXPECT_EQ(cache.n_tokens(), 0);
      restore(prefixes, cache, 1, 5 * kPage);
    }
    expect_read(cache, 1, 5 * kPage);
  }
  EXPECT_GE(n_failed, 6);  // five copies and the tables
  prefixes.clear();
  EXPECT_EQ(pool->bytes_in_use() + host->bytes_in_use(), 0);
}

// What could not be written when it was read is written when it leaves memory.
TEST_P(HostTierTest, GoesOnToFiles) {
  const auto host = host_pool(2);
  const TempDir dir;
  PageStore store({.directory = dir.path(), .max_bytes = 1 << 20, .warn = {}});
  PrefixCache prefixes(*backend, entry_bytes(), host.get(), &store);
  {
    KvCache cache(*backend, *pool, shape);
    read(cache, 1, 3 * kPage);
    backend->calls_left = 1;  // the entropies; of the first page nothing
    EXPECT_NE(error_of([&] {
                prefixes.remember(text(1, 3 * kPage), 3 * kPage, 3 * kPage, policy(), cache,
                                  entropies.view(), {});
              }),
              "");
    backend->calls_left = INT64_MAX;
  }
  store.flush();
  ASSERT_EQ(store.bytes(), 0);
  remember(prefixes, 2, 3 * kPage);  // that page goes to the host, where more follow it
  remember(prefixes, 3, 3 * kPage);
  store.flush();
  use_free_pages();
  const int64_t of_image = store.bytes() / 7;
  EXPECT_EQ(store.bytes(), 7 * of_image);
  KvCache cache(*backend, *pool, shape);
  const PrefixCache::Hit hit = restore(prefixes, cache, 1, kPage);
  EXPECT_EQ(hit.n_loaded, kPage);
  EXPECT_EQ(hit.n_tokens, kPage);
}

TEST_P(HostTierTest, APoolOfTheHostHasWhatItBeganWith) {
  HostMemory& memory = *backend->host_memory();
  {
    PagePool three(memory, 1000, 3999);
    std::vector<PageRef> pages = {three.take(), three.take(), three.take()};
    EXPECT_NE(error_of([&] { three.take(); }), "");
    pages.pop_back();
    EXPECT_EQ(three.n_free(), 1);
    EXPECT_NO_THROW(three.take());
  }
  EXPECT_NE(error_of([&] { PagePool(memory, 1000, 999).take(); }), "");
  EXPECT_EQ(backend->host.allocated_bytes, 0);
}

std::vector<std::string> devices() {
  std::vector<std::string> names = gpu_names();
  names.push_back("deferred");
  return names;
}
INSTANTIATE_TEST_SUITE_P(On, HostTierTest, testing::ValuesIn(devices()), backend_name);

}  // namespace
}  // namespace ei::test
