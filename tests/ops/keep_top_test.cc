#include "ei/ops/keep_top.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(KeepTopTest);

TEST_P(KeepTopTest, MatchesReference) {
  Array<int32_t, 1> n_votes({5});
  n_votes.v = {0, 1, 7, 64, 9001};
  for (const int64_t n_top : {0, 1, 7, 63, 500, 2000})
    for (const int64_t window : {0, 1, 32})
      for (const bool ties : {false, true}) {
        SCOPED_TRACE(testing::Message() << n_top << " + " << window << " ties " << ties);
        Array<float, 2> votes(normal<2>({5, 9001}, 1, 3));
        if (ties)
          for (float& vote : votes.v) vote = std::round(vote);
        const auto on_device = upload<float>(votes);
        const auto n = upload<int32_t>(n_votes);
        const auto rows = poisoned_array<int32_t, 2>({5, n_top + window + 1});
        const auto count = poisoned_array<int32_t, 1>({5});
        backend().run(KeepTop{.votes = on_device.view(),
                              .n_votes = n.view(),
                              .n_top = n_top,
                              .window = window,
                              .out = {rows.view(), count.view()}});
        const auto got = download(rows);
        const auto got_count = download(count);
        for (int64_t h = 0; h < 5; ++h) {
          const auto row = votes[h];
          const ref::Rows want = ref::keep_top({row.data, row.data + n_votes[h]}, n_top, window);
          ASSERT_EQ(got_count[h], std::ssize(want));
          const auto kept = got[h];
          EXPECT_EQ(ref::Rows(kept.data, kept.data + want.size()), want) << "head " << h;
        }
      }
}

TEST_P(KeepTopTest, RejectsTooLittleRoom) {
  const auto votes = poisoned_array<float, 2>({1, 8});
  const auto n = upload<int32_t>(Array<int32_t, 1>({1}, 8));
  const auto rows = poisoned_array<int32_t, 2>({1, 5});
  const auto count = poisoned_array<int32_t, 1>({1});
  EXPECT_THROW(backend().run(KeepTop{.votes = votes.view(),
                                     .n_votes = n.view(),
                                     .n_top = 4,
                                     .window = 2,
                                     .out = {rows.view(), count.view()}}),
               Error);
}

}  // namespace
}  // namespace ei::test
