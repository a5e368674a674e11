#include "ei/ops/append_kv.h"

#include "tests/ref/ref.h"
#include "tests/support/device_kv.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(AppendKvTest);

// Rounded to the cache's type: in kQ8 by at most half a step, of which the row's largest has 127.
// Others as the tests round.
void expect_rounded(const double* got, const double* values, int64_t d, DType dtype, RowOf what) {
  double largest = 0;
  for (int64_t c = 0; c < d; ++c) largest = std::max(largest, std::abs(values[c]));
  Matrix stored({1, d});
  std::copy_n(values, d, stored[0].data);
  round_rows(stored, dtype, what);
  for (int64_t c = 0; c < d; ++c) {
    if (dtype == DType::kQ8) {
      ASSERT_NEAR(got[c], values[c], largest / 254 * (1 + 1e-5));
    } else {
      ASSERT_EQ(got[c], stored[0][c]);
    }
  }
}

void expect_appended(const HostKv& got, const HostKv& before, const Matrix& k, const Matrix& v,
                     int64_t first_row, int64_t n, int64_t column, DType dtype) {
  const int64_t rows = before.k.dim(0), d = before.k.dim(1);
  ASSERT_EQ(got.k.dim(0), rows + n);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < d; ++c) {
      ASSERT_EQ(got.k[r][c], before.k[r][c]);
      ASSERT_EQ(got.v[r][c], before.v[r][c]);
    }
  for (int64_t i = 0; i < n; ++i) {
    expect_rounded(got.k[rows + i].data, k[first_row + i].data + column, d, dtype, RowOf::kKey);
    expect_rounded(got.v[rows + i].data, v[first_row + i].data + column, d, dtype, RowOf::kValue);
  }
}

// Of these keys, in the type in which a cache has them.
ref::Bounds stored_bounds(const Matrix& k, DType dtype, int64_t block) {
  ref::Bounds bounds = ref::key_bounds(k, block);
  if (dtype == DType::kQ8) {
    for (double& x : bounds.min.v) x = bf16_down(x);
    for (double& x : bounds.max.v) x = bf16_up(x);
  }
  return bounds;
}

// The bounds of what they hold, once it is rounded.
std::vector<HostKv> with_bounds(std::vector<HostKv> heads, DType dtype, int64_t block) {
  for (HostKv& head : heads) {
    round_rows(head.k, dtype);
    const ref::Bounds bounds = stored_bounds(head.k, dtype, block);
    head.lowest = bounds.min;
    head.highest = bounds.max;
  }
  return heads;
}

void expect_bounds(const HostKv& got, DType dtype, int64_t block) {
  const ref::Bounds want = stored_bounds(got.k, dtype, block);
  EXPECT_EQ(got.lowest.v, want.min.v);
  EXPECT_EQ(got.highest.v, want.max.v);
}

TEST_P(AppendKvTest, StoresRowsAndBounds) {
  for (const int64_t d : {2, 80, 128})
    for (const DType dtype : kv_types(d))
      for (const int64_t held : {0, 1, 7, 8, 31, 64})
        for (const int64_t n : {0, 1, 7, 9, 70}) {
          SCOPED_TRACE(testing::Message()
                       << dtype_name(dtype) << " d " << d << ": " << held << " + " << n);
          const int64_t heads = 3, block = 8, max_rows = 160;
          DeviceKv cache(backend(), {dtype, d, 32, max_rows, block},
                         with_bounds(random_heads({held, held, held}, d, 1), dtype, block));
          const std::vector<HostKv> before = cache.heads();
          const DeviceAct k = act(normal<2>({n, heads * d}, 5), 1),
                          v = act(normal<2>({n, heads * d}, 6), 1);
          cache.expect_rows(n);
          const KvLayer kv = cache.layer();
          backend().run(AppendKv{.k = k, .v = v, .kv = {&kv, 1}});
          const auto after = cache.heads();
          const Matrix keys = k.values(), values = v.values();
          for (int64_t h = 0; h < heads; ++h) {
            expect_appended(after[size_t(h)], before[size_t(h)], keys, values, 0, n, h * d, dtype);
            expect_bounds(after[size_t(h)], dtype, block);
          }
        }
}

// Rows to each of several sequences with ragged heads: one of them goes on with its bounds, the
// other has none and is stored per query head.
TEST_P(AppendKvTest, ServesSeveralSequences) {
  const int64_t d = 16, block = 24;
  for (const DType dtype : kv_types(d))
    for (const int64_t n : {1, 70}) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", " << n);
      DeviceKv a(backend(), {dtype, d, 48, 144, block},
                 with_bounds(random_heads({5, 48}, d, 1), dtype, block));
      DeviceKv b(backend(), {dtype, d, 8, 96}, random_heads({0, 8, 9, 16}, d, 2));
      const auto a_before = a.heads(), b_before = b.heads();
      const DeviceAct k = act(normal<2>({2 * n, 2 * d}, 5)), v = act(normal<2>({2 * n, 2 * d}, 6));
      a.expect_rows(n);
      b.expect_rows(n);
      const std::vector<KvLayer> kv = {a.layer(), b.layer()};
      backend().run(AppendKv{.k = k, .v = v, .kv = kv});
      const auto a_after = a.heads(), b_after = b.heads();
      const Matrix keys = k.values(), values = v.values();
      for (size_t h = 0; h < 2; ++h) {
        expect_appended(a_after[h], a_before[h], keys, values, 0, n, int64_t(h) * d, dtype);
        expect_bounds(a_after[h], dtype, block);
      }
      for (size_t h = 0; h < 4; ++h)
        expect_appended(b_after[h], b_before[h], keys, values, n, n, int64_t(h / 2) * d, dtype);
    }
}

TEST_P(AppendKvTest, RoundsToNearestEven) {
  Matrix values({1, 4});
  values.v = {1 + 0x1p-8, 1 + 0x3p-8, 1 + 0x1p-8 + 0x1p-20, -1 - 0x1p-8};
  DeviceKv cache(backend(), {DType::kBF16, 4, 8, 8}, random_heads({0}, 4, 1));
  cache.expect_rows(1);
  const KvLayer kv = cache.layer();
  const DeviceAct k = act(values);
  if (backend().act_bytes() < 4) GTEST_SKIP() << "activations are rounded already";
  backend().run(AppendKv{.k = k, .v = k, .kv = {&kv, 1}});
  EXPECT_EQ(cache.heads()[0].k.v, (std::vector<double>{1, 1 + 0x1p-6, 1 + 0x1p-7, -1}));
}

// The CPU has no caches of fp8, and there are none for heads of 24.
TEST_P(AppendKvTest, RejectsFp8) {
  for (const int64_t d : {16, 24}) {
    if (d == 16 && backend().act_bytes() != 4) continue;
    DeviceKv cache(backend(), {DType::kFP8, d, 8, 8}, random_heads({0}, d, 1));
    cache.expect_rows(1);
    const KvLayer kv = cache.layer();
    const DeviceAct k = poisoned(1, d);
    EXPECT_THROW(backend().run(AppendKv{.k = k, .v = k, .kv = {&kv, 1}}), Error);
  }
}

TEST_P(AppendKvTest, RejectsMoreRowsThanPages) {
  DeviceKv cache(backend(), {DType::kF32, 4, 8, 8}, random_heads({8}, 4, 1));
  cache.expect_rows(1);
  const KvLayer kv = cache.layer();
  const DeviceAct k = poisoned(1, 4);
  EXPECT_THROW(backend().run(AppendKv{.k = k, .v = k, .kv = {&kv, 1}}), Error);
}

}  // namespace
}  // namespace ei::test
