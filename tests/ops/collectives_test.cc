#include "ei/ops/collectives.h"

#include <mutex>

#include "ei/base/thread_ranks.h"
#include "ei/cpu/backend.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"

namespace ei::test {
namespace {

// Row i, column j of what a rank has: whole numbers, whose sums are exact.
double value(int rank, int64_t i, int64_t j) { return 100 * rank + 10 * double(i) + double(j); }

Matrix values_of(int rank, int64_t rows, int64_t cols) {
  Matrix values({rows, cols});
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) values[i][j] = value(rank, i, j);
  return values;
}

TEST(CollectivesTest, SumAndGatherWhatAllRanksHave) {
  std::mutex mutex;
  for (const int n : {1, 2, 3})
    for (const int64_t rows : {0, 1, 3})
      for (const int64_t cols : {1, 7}) {
        SCOPED_TRACE(testing::Message() << n << " ranks, " << rows << " x " << cols);
        ThreadRanks(n).run([&](const std::shared_ptr<Communicator>& ranks) {
          const auto backend = make_cpu_backend(1, Math::kF32, ranks);
          const Matrix mine = values_of(ranks->rank(), rows, cols);
          const DeviceAct x(*backend, mine), part(*backend, mine),
              out(*backend, Matrix({rows, n * cols}, -1));
          backend->run(AllReduce{x});
          backend->run(AllGather{.part = part, .out = out});
          const std::lock_guard lock(mutex);
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < cols; ++j) {
              double sum = 0;
              for (int r = 0; r < n; ++r) {
                sum += value(r, i, j);
                EXPECT_EQ(out.values()[i][r * cols + j], value(r, i, j));
              }
              EXPECT_EQ(x.values()[i][j], sum);
            }
        });
      }
}

TEST(CollectivesTest, GatherRefusesOtherShapes) {
  const auto backend = make_cpu_backend(1);
  const DeviceAct part(*backend, Matrix({2, 3}, 0)), out(*backend, Matrix({2, 6}, 0));
  EXPECT_NE(error_of([&] { backend->run(AllGather{.part = part, .out = out}); }), "");
}

}  // namespace
}  // namespace ei::test
