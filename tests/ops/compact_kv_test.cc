#include "ei/ops/compact_kv.h"

#include "tests/support/device_kv.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(CompactKvTest);

TEST_P(CompactKvTest, CopiesTheKeptRows) {
  for (const int64_t d : {17, 64})
    for (const DType dtype : kv_types(d))
      for (const int64_t copies : {1, 3}) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " d " << d << " x " << copies);
        // The cache has bounds, the compacted one does not.
        std::vector<HostKv> heads = random_heads({200, 77}, d, 1, dtype == DType::kFP8);
        for (HostKv& head : heads)
          head.lowest = head.highest = Matrix({(head.k.dim(0) + 7) / 8, d}, 1.0);
        DeviceKv from(backend(), {dtype, d, 16, 200, 8}, heads);
        DeviceKv to(backend(), {dtype, d, 16, 64},
                    random_heads(std::vector<int64_t>(size_t(2 * copies), 0), d, 1));
        Array<int32_t, 2> rows({2 * copies, 40}, -7777);
        Array<int32_t, 1> count({2 * copies});
        for (int64_t h = 0; h < 2 * copies; ++h) {
          count[h] = int32_t(h == 0 ? 0 : 16 + 3 * h);
          for (int64_t i = 0; i < count[h]; ++i) rows[h][i] = int32_t(2 * i + h);
        }
        const auto keep_rows = upload<int32_t>(rows);
        const auto keep_count = upload<int32_t>(count);
        to.expect_rows(40);
        backend().run(CompactKv{
            .from = from.layer(), .keep = {keep_rows.view(), keep_count.view()}, .to = to.layer()});
        const auto before = from.heads(), after = to.heads();
        for (int64_t h = 0; h < 2 * copies; ++h) {
          const HostKv &got = after[size_t(h)], &source = before[size_t(h / copies)];
          ASSERT_EQ(got.k.dim(0), count[h]);
          for (int64_t i = 0; i < count[h]; ++i)
            for (int64_t c = 0; c < d; ++c) {
              ASSERT_EQ(got.k[i][c], source.k[rows[h][i]][c]);
              ASSERT_EQ(got.v[i][c], source.v[rows[h][i]][c]);
            }
        }
      }
}

TEST_P(CompactKvTest, RejectsAnotherType) {
  DeviceKv from(backend(), {DType::kF32, 16, 16, 32}, random_heads({20}, 16, 1));
  DeviceKv to(backend(), {DType::kBF16, 16, 16, 32}, random_heads({0}, 16, 1));
  const auto rows = upload<int32_t>(Array<int32_t, 2>({1, 4}));
  const auto count = upload<int32_t>(Array<int32_t, 1>({1}));
  EXPECT_THROW(backend().run(CompactKv{
                   .from = from.layer(), .keep = {rows.view(), count.view()}, .to = to.layer()}),
               Error);
}

}  // namespace
}  // namespace ei::test
