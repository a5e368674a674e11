#include "ei/ops/save_queries.h"

#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SaveQueriesTest);

TEST_P(SaveQueriesTest, EveryPositionHasItsRow) {
  for (const int64_t window : {1, 5, 32})
    for (const int64_t share : {0, 1, 4, 33, 100})
      for (const int64_t sequences : {1, 3})
        for (const int64_t width : {6, 64}) {
          SCOPED_TRACE(testing::Message() << sequences << " x " << share << " rows, " << window);
          const DeviceAct q = act(normal<2>({sequences * share, width}, 1), 1);
          std::vector<DeviceAct> rings;
          std::vector<Act> acts;
          std::vector<int64_t> positions;
          std::vector<Matrix> want;
          for (int64_t s = 0; s < sequences; ++s) {
            rings.push_back(act(normal<2>({window, width}, 2 + uint64_t(s))));
            acts.push_back(rings.back());
            positions.push_back(7 * s + 3);
            want.push_back(rings.back().values());
            for (int64_t i = 0; i < share; ++i)
              for (int64_t c = 0; c < width; ++c)
                want.back()[(positions.back() + i) % window][c] = q.values()[s * share + i][c];
          }
          backend().run(SaveQueries{.q = q, .rings = acts, .positions = positions});
          for (size_t s = 0; s < rings.size(); ++s) EXPECT_EQ(rings[s].values().v, want[s].v);
        }
}

TEST_P(SaveQueriesTest, RejectsUnequalShares) {
  const DeviceAct q = poisoned(3, 4), ring = poisoned(8, 4);
  const std::vector<Act> rings = {ring, ring};
  const std::vector<int64_t> positions = {0, 0};
  EXPECT_THROW(backend().run(SaveQueries{.q = q, .rings = rings, .positions = positions}), Error);
}

}  // namespace
}  // namespace ei::test
