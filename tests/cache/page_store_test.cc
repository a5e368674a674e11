#include "ei/cache/page_store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <random>

#include "ei/cache/page_image.h"
#include "ei/cpu/backend.h"
#include "ei/io/json.h"
#include "tests/support/files.h"

namespace ei::test {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::byte>;

class PageStoreTest : public testing::Test {
 protected:
  // Of pages that were full of something else before.
  Bytes image(uint64_t parent = 0, int64_t n_tokens = 16) {
    pages.clear();
    for (int i = 0; i < 2; ++i) {
      pages.push_back(pool.take());
      auto* data = static_cast<uint8_t*>(pages.back()->data());
      for (int64_t b = 0; b < pool.page_bytes(); ++b)
        data[b] = static_cast<uint8_t>(random() % 255 + 1);
    }
    PageImage image = {.model = "m", .policy = "p", .parent = parent, .entropies = {0.5f, 2}};
    for (int64_t i = 0; i < n_tokens; ++i) image.tokens.push_back(static_cast<int32_t>(i * 3));
    return make_image(image, *backend, shape.layout, pages);
  }
  PageStore::Options options(int64_t max_bytes = 1 << 20) {
    return {.directory = dir / "pages", .max_bytes = max_bytes, .warn = [this](const auto& what) {
              const std::lock_guard lock(mutex);
              warnings.push_back(what);
            }};
  }
  // Bytes of a page of n tokens are those of the page they were copied from where they hold
  // something; how many these are.
  int64_t expect_used(const uint8_t* page, const uint8_t* from, int64_t n) const {
    const PageLayout& layout = shape.layout;
    const int64_t n_bounds = (n + 3) / 4 * layout.bound_rows(), row = layout.row_bytes();
    std::vector<bool> used(static_cast<size_t>(layout.bytes()));
    const auto use = [&](int64_t first, int64_t bytes) {
      std::fill_n(used.begin() + first, bytes, true);
    };
    use(0, n * row);
    use(layout.first_value() * row, n * row);
    use(layout.first_lowest() * row, n_bounds * row);
    use(layout.first_highest() * row, n_bounds * row);
    if (layout.dtype == DType::kFP8) {
      use(layout.first_scale() * row, 4 * n);
      use(layout.first_scale() * row + 4 * layout.rows, 4 * n);
    }
    for (int64_t b = 0; b < layout.bytes(); ++b)
      if (used[static_cast<size_t>(b)]) {
        EXPECT_EQ(page[b], from[b]) << b;
      }
    return std::ranges::count(used, true);
  }
  static std::vector<std::string> names(const fs::path& directory) {
    std::vector<std::string> all;
    for (const auto& file : fs::directory_iterator(directory))
      if (file.path().filename() != "lock") all.push_back(file.path().filename());
    std::ranges::sort(all);
    return all;
  }

  const std::unique_ptr<Backend> backend = make_cpu_backend(1);
  KvShape shape = {.n_layers = 2,
                   .n_kv_heads = 1,
                   .layout = {.head_dim = 8, .rows = 16, .block = 4},
                   .max_tokens = 64};
  PagePool pool{*backend, 1000};  // more than such pages take
  std::vector<PageRef> pages;     // of the last image
  std::mt19937_64 random{1};
  TempDir dir;
  std::mutex mutex;
  std::vector<std::string> warnings;
};

TEST_F(PageStoreTest, ImagesHoldWhatPagesHoldAndNothingElse) {
  for (const DType dtype : {DType::kBF16, DType::kFP8})
    for (const int64_t n : {1, 4, 7, 16}) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", " << n);
      shape.layout.dtype = dtype;
      shape.layout.head_dim = 16 / dtype_bytes(dtype);
      Bytes bytes = image(0xABC, n);
      seal(bytes);
      const PageImage got = parse_image(bytes, "f");
      EXPECT_EQ(got.model, "m");
      EXPECT_EQ(got.policy, "p");
      EXPECT_EQ(got.parent, 0xABCu);
      EXPECT_EQ(std::ssize(got.tokens), n);
      EXPECT_EQ(got.entropies, (std::vector<float>{0.5f, 2}));
      check_pages(got, shape, "f");
      const auto taken = take_pages(got, *backend, shape, pool);
      ASSERT_EQ(taken.size(), 2u);
      int64_t n_used = 0;
      for (size_t i = 0; i < 2; ++i)
        n_used += expect_used(static_cast<const uint8_t*>(taken[i]->data()),
                              static_cast<const uint8_t*>(pages[i]->data()), n);
      EXPECT_EQ(std::ssize(got.pages), n_used);
      KvShape other = shape;
      other.layout.dtype = DType::kF32;
      EXPECT_NE(error_of([&] { check_pages(got, other, "f"); }), "");
    }
}

TEST_F(PageStoreTest, NoDamageGoesUnseen) {
  Bytes bytes = image();
  seal(bytes);
  for (size_t i = 0; i < bytes.size(); ++i) {
    Bytes damaged = bytes;
    damaged[i] ^= static_cast<std::byte>(1 + random() % 255);
    EXPECT_NE(error_of([&] { parse_image(damaged, "f"); }), "") << i;
    damaged.resize(i);
    EXPECT_NE(error_of([&] { parse_image(damaged, "f"); }), "") << i;
  }
  bytes.resize(bytes.size() + 32);
  EXPECT_NE(error_of([&] { parse_image(bytes, "f"); }), "");
}

// Whoever wrote the file also wrote its checksum.
TEST_F(PageStoreTest, CraftedImagesAreReadOrRefused) {
  const Bytes bytes = image();
  for (size_t i = 0; i < bytes.size() - 8; ++i) {
    Bytes crafted = bytes;
    crafted[i] ^= static_cast<std::byte>(1 + random() % 255);
    seal(crafted);
    error_of([&] { check_pages(parse_image(crafted, "f"), shape, "f"); });
  }
}

TEST_F(PageStoreTest, OutlivesTheProcessAndKeepsTheOrderOfUse) {
  const Bytes a = image(0), b = image(1), c = image(2), d = image(9);
  const auto size = std::ssize(a);
  {
    PageStore store(options(3 * size + 8));
    store.put(1, 0, a);
    store.put(2, 1, b);
    store.put(3, 2, c);
    store.flush();
    EXPECT_TRUE(store.has(1) && store.has(2) && store.has(3));
    store.put(9, 8, d);  // of another text: the end of the first goes
    store.flush();
    EXPECT_FALSE(store.has(3));
    EXPECT_EQ(store.bytes(), 3 * size);
    const PageStore::Key path[] = {1, 2};
    store.touch(path);  // now the other was used longest ago
  }
  struct stat status {};
  ASSERT_EQ(::stat((dir / "pages/0000000000000001.safetensors").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  write_file(dir / "pages/0000000000000002.safetensors.77.part", "half of it");
  write_file(dir / "pages/README", "somebody's");
  {
    PageStore store(options(2 * size));
    EXPECT_TRUE(store.has(1) && store.has(2) && !store.has(9));
    Bytes sealed = b;
    seal(sealed);
    EXPECT_EQ(store.get(2), sealed);
    EXPECT_TRUE(store.get(3).empty());
    EXPECT_NE(error_of([&] { PageStore other(options()); }),
              "");  // two would not know of each other
  }
  EXPECT_EQ(names(dir / "pages"),
            (std::vector<std::string>{"0000000000000001.safetensors",
                                      "0000000000000002.safetensors", "README"}));
  EXPECT_TRUE(warnings.empty());
}

TEST_F(PageStoreTest, AFullDiskIsAMiss) {
  PageStore store(options());
  const Bytes bytes = image();
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small = {.rlim_cur = static_cast<rlim_t>(bytes.size() / 2),
                        .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  store.put(1, 0, bytes);
  store.flush();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_FALSE(store.has(1));
  EXPECT_EQ(store.bytes(), 0);
  EXPECT_EQ(names(dir / "pages"), std::vector<std::string>());
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("File too large"), std::string::npos) << warnings[0];
  store.put(1, 0, bytes);
  store.flush();
  EXPECT_TRUE(store.has(1));
}

// An image's memory is used again, whatever was in it.
TEST_F(PageStoreTest, GivesMemoryBackToUse) {
  PageStore store(options());
  EXPECT_TRUE(store.spare().empty());
  const Bytes first = image(1);
  const Bytes want = [&] {
    const PageImage second = {.model = "m", .policy = "p", .parent = 2, .tokens = {1, 2, 3}};
    return make_image(second, *backend, shape.layout, pages);
  }();
  store.put(1, 0, first);
  store.flush();
  Bytes spare = store.spare();
  EXPECT_GE(spare.capacity(), first.size());
  EXPECT_TRUE(store.spare().empty());
  const std::byte* const there = spare.data();
  const PageImage second = {.model = "m", .policy = "p", .parent = 2, .tokens = {1, 2, 3}};
  Bytes got = make_image(second, *backend, shape.layout, pages, std::move(spare));
  EXPECT_EQ(got.data(), there);
  got.resize(got.size() - 8);  // the checksum is not there yet
  EXPECT_EQ(got, Bytes(want.begin(), want.end() - 8));
  store.put(2, 1, Bytes(17 << 20));
  store.flush();
  EXPECT_TRUE(store.spare().empty());  // too large to be kept
}

TEST_F(PageStoreTest, WhatWaitsIsBounded) {
  PageStore store(options(int64_t{1} << 40));
  EXPECT_TRUE(store.has_room(int64_t{1} << 30));  // alone, whatever its size
  PageStore small(PageStore::Options{.directory = dir / "other", .max_bytes = 100, .warn = {}});
  EXPECT_FALSE(small.has_room(101));
}

TEST_F(PageStoreTest, RefusesWhatIsNoDirectory) {
  write_file(dir / "file", "x");
  EXPECT_NE(error_of([&] { PageStore(PageStore::Options{.directory = dir / "file"}); }), "");
}

}  // namespace
}  // namespace ei::test
