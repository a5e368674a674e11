#include "apps/bench/statistics.h"

#include <gtest/gtest.h>

#include <vector>

namespace ei::bench {
namespace {

TEST(BenchStatisticsTest, MeanAndSampleDeviation) {
  const std::vector<double> x = {2, 4, 4, 4, 5, 5, 7, 9};
  EXPECT_DOUBLE_EQ(mean(x), 5);
  EXPECT_DOUBLE_EQ(deviation(x), std::sqrt(32.0 / 7));
}

TEST(BenchStatisticsTest, FewValues) {
  EXPECT_EQ(mean({}), 0);
  EXPECT_EQ(deviation({}), 0);
  const std::vector<double> one = {3};
  EXPECT_EQ(mean(one), 3);
  EXPECT_EQ(deviation(one), 0);
}

}  // namespace
}  // namespace ei::bench
