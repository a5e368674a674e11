#include "ei/ops/save_queries.h"

#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SaveQueriesTest);

// Windows of any size side by side, of queries that lie anywhere.
TEST_P(SaveQueriesTest, EveryPositionHasItsRow) {
  for (const std::vector<int64_t>& shares :
       {std::vector<int64_t>{0}, {1}, {100}, {1, 1, 1}, {4, 0, 33}, std::vector<int64_t>(70, 1)})
    for (const int64_t window : {1, 5, 32})
      for (const int64_t width : {6, 64}) {
        SCOPED_TRACE(testing::Message() << testing::PrintToString(shares) << ", " << window);
        const int64_t between = 2;  // rows of sequences that remember nothing
        int64_t n_rows = 0;
        for (const int64_t share : shares) n_rows += share + between;
        const DeviceAct q = act(normal<2>({n_rows, width}, 1), 1);
        std::vector<DeviceAct> rings;
        std::vector<SaveQueries::Entry> entries;
        std::vector<Matrix> want;
        int64_t row = 0;
        for (size_t s = 0; s < shares.size(); ++s) {
          const int64_t position = 7 * int64_t(s) + 3, size = window + int64_t(s) % 3;
          rings.push_back(act(normal<2>({size, width}, 2 + s)));
          entries.push_back({q.act().slice(row, shares[s]), position, rings.back()});
          want.push_back(rings.back().values());
          for (int64_t i = 0; i < shares[s]; ++i)
            for (int64_t c = 0; c < width; ++c)
              want.back()[(position + i) % size][c] = q.values()[row + i][c];
          row += shares[s] + between;
        }
        backend().run(SaveQueries{entries});
        for (size_t s = 0; s < rings.size(); ++s) EXPECT_EQ(rings[s].values().v, want[s].v);
      }
}

TEST_P(SaveQueriesTest, RejectsWhatDoesNotFit) {
  const DeviceAct q = poisoned(3, 4), narrow = poisoned(3, 2), ring = poisoned(8, 4);
  const auto refuses = [&](const SaveQueries::Entry& entry) {
    const SaveQueries::Entry entries[] = {{q, 0, ring}, entry};
    EXPECT_THROW(backend().run(SaveQueries{entries}), Error);
  };
  refuses({q, -1, ring});
  refuses({narrow, 0, ring});
  refuses({narrow, 0, poisoned(8, 2)});
  refuses({q, 0, Act{nullptr, 0, 4, backend().act_bytes()}});
}

}  // namespace
}  // namespace ei::test
