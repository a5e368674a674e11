// Sums and gathers of two GPUs, alone and in graphs, and what becomes of the one when the other
// fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <future>

#include "ei/base/fail.h"
#include "ei/base/thread_ranks.h"
#include "ei/cuda/backend.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"
#include "tests/support/numbers.h"

namespace ei::test {
namespace {

using Ranks = std::shared_ptr<Communicator>;

class NcclTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (n_gpus() < 2) GTEST_SKIP() << "this machine has no two GPUs";
  }
};
EI_TWO_GPUS_TEST(NcclTest);

// Whole numbers, whose sums bf16 holds exactly.
double value(int rank, int64_t i, int64_t j) {
  return 50 * rank + static_cast<double>((7 * i + j) % 64);
}

Matrix values_of(int rank, int64_t rows, int64_t cols) {
  Matrix values({rows, cols});
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) values[i][j] = value(rank, i, j);
  return values;
}

Matrix sum_of(int64_t rows, int64_t cols) {
  Matrix sum = values_of(0, rows, cols);
  const Matrix other = values_of(1, rows, cols);
  for (size_t i = 0; i < sum.v.size(); ++i) sum.v[i] += other.v[i];
  return sum;
}

void expect_gathered(Backend& backend, int rank, int64_t rows, int64_t m, bool repeated) {
  std::vector<float> mine;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < m; ++j) mine.push_back(static_cast<float>(value(rank, i, j)));
  const DeviceArray<float, 1> part(backend, mine), all(backend, {rows * 2 * m});
  const AllGather op = {.part = {part.view().data, rows, m, sizeof(float)},
                        .out = {all.view().data, rows, 2 * m, sizeof(float)}};
  if (repeated) {
    backend.repeat([&] { backend.run(op); });
  } else {
    backend.run(op);
  }
  const std::vector<float> got = all.to_host(backend);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < 2 * m; ++j)
      ASSERT_EQ(got[static_cast<size_t>(i * 2 * m + j)],
                static_cast<float>(value(j < m ? 0 : 1, i, j % m)))
          << i << ", " << j;
}

TEST_P(NcclTest, SumsAndGathers) {
  ThreadRanks(2).run([&](const Ranks& ranks) {
    const auto backend = make_cuda_backend(Math::kBF16, ranks);
    for (const int64_t rows : {1, 3, 64, 1023, 1024})
      for (const int64_t cols : {8, 4096}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << cols);
        const DeviceAct x(*backend, values_of(ranks->rank(), rows, cols));
        backend->run(AllReduce{x});
        EXPECT_EQ(x.values().v, sum_of(rows, cols).v);
        if (rows <= 64) expect_gathered(*backend, ranks->rank(), rows, cols, false);
      }
  });
}

// As a decode step has them: graphs that are started again, with other memory and of other sizes.
TEST_P(NcclTest, SumsAndGathersInGraphs) {
  ThreadRanks(2).run([&](const Ranks& ranks) {
    const auto backend = make_cuda_backend(Math::kBF16, ranks);
    for (int round = 0; round < 6; ++round)
      for (const int64_t rows : {1, 2, 16}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, round " << round);
        const int64_t cols = round < 3 ? 1024 : 4096;
        const DeviceAct x(*backend, values_of(ranks->rank(), rows, cols)),
            y(*backend, values_of(ranks->rank(), rows, cols)),
            gate(*backend, Matrix({rows, cols}, 0)), up(*backend, Matrix({rows, cols}, 3));
        for (int again = 0; again < 2; ++again)
          backend->repeat([&] {
            backend->run(SwiGlu{.gate = gate, .up = up, .out = gate});  // a kernel of our own: 0
            backend->run(AllReduce{gate});
            if (again == 0) backend->run(AllReduce{x});
            if (again == 1) backend->run(AllReduce{y});
          });
        EXPECT_EQ(x.values().v, sum_of(rows, cols).v);
        EXPECT_EQ(y.values().v, sum_of(rows, cols).v);
        EXPECT_EQ(gate.values().v, Matrix({rows, cols}, 0).v);
        expect_gathered(*backend, ranks->rank(), rows, cols, true);
      }
  });
}

// In memory of which each rank knows the others', where a model has a step's few rows; it is taken
// again once it was given back.
TEST_P(NcclTest, SumsInMemoryMadeForIt) {
  ThreadRanks(2).run([&](const Ranks& ranks) {
    const auto backend = make_cuda_backend(Math::kBF16, ranks);
    for (int round = 0; round < 3; ++round)
      for (const int64_t rows : {1, 2, 4, 33}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, round " << round);
        const int64_t cols = 1024;
        const DeviceAct from(*backend, values_of(ranks->rank(), rows, cols)),
            to(*backend, Matrix({rows, cols}, 0));
        const Buffer x = Buffer::summed(*backend, rows * cols * 2),
                     y = Buffer::summed(*backend, rows * cols * 2);
        EXPECT_NE(x.data(), y.data());
        for (const Buffer* summed : {&x, &y}) {
          backend->copy_in(summed->data(), from.act().data, rows * cols * 2);
          const AllReduce op{{summed->data(), rows, cols, 2}};
          round == 0 ? backend->run(op) : backend->repeat([&] { backend->run(op); });
          backend->copy_in(to.act().data, summed->data(), rows * cols * 2);
          EXPECT_EQ(to.values().v, sum_of(rows, cols).v);
        }
      }
  });
}

// As a chunk has them: sums of many rows, of which one runs beside the norm of the rows of the
// other, and what reads or writes their own rows waits for them. Norms: of what bf16 holds exactly,
// rounded once.
TEST_P(NcclTest, WhatTouchesARunningSumWaitsForIt) {
  constexpr int64_t kRows = 2048, kCols = 4096;
  Matrix want({2 * kRows, kCols});
  for (int64_t i = 0; i < 2 * kRows; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < kCols; ++j) {
      want[i][j] = value(0, i, j) + value(1, i, j);
      squares += want[i][j] * want[i][j];
    }
    for (int64_t j = 0; j < kCols; ++j) want[i][j] /= std::sqrt(squares / kCols);
  }
  ThreadRanks(2).run([&](const Ranks& ranks) {
    const auto backend = make_cuda_backend(Math::kBF16, ranks);
    const std::vector<float> ones(kCols, 1.0f);
    const DeviceArray<float, 1> weight(*backend, ones);
    const Matrix mine = values_of(ranks->rank(), 2 * kRows, kCols);
    const DeviceAct fresh(*backend, mine), x(*backend, mine),
        h(*backend, Matrix({2 * kRows, kCols}, 0));
    const auto half = [&](const DeviceAct& a, int i) { return a.act().slice(i * kRows, kRows); };
    for (int round = 0; round < 5; ++round) {
      backend->copy_in(x.act().data, fresh.act().data, 2 * kRows * kCols * 2);
      for (const int i : {0, 1}) backend->run(AllReduce{half(x, i)});
      for (const int i : {0, 1})  // where it lies, so that what comes too early is summed
        backend->run(
            RmsNorm{.x = half(x, i), .weight = weight.view(), .eps = 0, .out = half(x, i)});
      backend->run(AllReduce{half(x, 0)});
      backend->run(RmsNorm{.x = half(x, 1), .weight = weight.view(), .eps = 0, .out = half(h, 1)});
      backend->run(RmsNorm{.x = half(x, 0), .weight = weight.view(), .eps = 0, .out = half(h, 0)});
      EXPECT_LT(nmse(h.values().v, want.v), 3e-5) << round;
    }
  });
}

// One ends between two sums: the other, which waits on the device, ends as well and says why.
TEST_P(NcclTest, AFailedRankEndsTheOther) {
  for (const int failing : {0, 1}) {
    std::string other;
    const std::string error = error_of([&] {
      ThreadRanks(2).run([&](const Ranks& ranks) {
        const auto backend = make_cuda_backend(Math::kBF16, ranks);
        const DeviceAct x(*backend, values_of(ranks->rank(), 8, 64));
        backend->run(AllReduce{x});
        if (ranks->rank() == failing) ranks->abort("the device is on fire");
        backend->run(AllReduce{x});
        other = error_of([&] { x.values(); });
        fail("{}", other);
      });
    });
    EXPECT_THAT(error, testing::HasSubstr("the device is on fire"));
    EXPECT_EQ(other, fmt::format("rank {} of 2: the device is on fire", failing));
  }
}

// One does not come: the other waits for seconds, and not for ever.
TEST_P(NcclTest, ARankThatHangsEndsTheOther) {
  std::promise<void> ended;
  const std::string error = error_of([&] {
    ThreadRanks(2).run([&](const Ranks& ranks) {
      const auto backend = make_cuda_backend(Math::kBF16, ranks);
      const DeviceAct x(*backend, values_of(ranks->rank(), 8, 64));
      backend->run(AllReduce{x});
      if (ranks->rank() == 1) return ended.get_future().wait();
      backend->repeat([&] { backend->run(AllReduce{x}); });
      const std::string mine = error_of([&] { x.values(); });
      ended.set_value();
      fail("{}", mine);
    });
  });
  EXPECT_THAT(error, testing::HasSubstr("rank 0 of 2: another rank does not answer any more"));
}

TEST_P(NcclTest, MoreRanksThanGpusAreRefused) {
  const int n = n_gpus() + 1;
  const std::string error = error_of([&] {
    ThreadRanks(n).run([](const Ranks& ranks) { make_cuda_backend(Math::kBF16, ranks); });
  });
  EXPECT_THAT(error,
              testing::HasSubstr(fmt::format("ranks 0 and {} of {} would share a GPU", n - 1, n)));
}

}  // namespace
}  // namespace ei::test
