#include "ei/engine/stop_filter.h"

#include <gtest/gtest.h>

#include <random>

namespace ei {
namespace {

TEST(StopFilterTest, StopsAcrossPieces) {
  StopFilter filter({"STOP"});
  EXPECT_EQ(filter.push("one S"), "one ");
  EXPECT_EQ(filter.push("TO"), "");
  EXPECT_EQ(filter.push("P two"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.stop(), "STOP");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilterTest, GivesBackWhatTurnsOutHarmless) {
  StopFilter filter({"STOP"});
  EXPECT_EQ(filter.push("ST"), "");
  EXPECT_EQ(filter.push("AR"), "STAR");
  EXPECT_EQ(filter.push("STO"), "");
  EXPECT_EQ(filter.finish(), "STO");
  EXPECT_FALSE(filter.stopped());
}

// Whatever the pieces, the text shown is the text before the first stop string.
TEST(StopFilterTest, DoesNotDependOnThePieces) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += char('a' + random() % 3);
    const std::vector<std::string> stops = {"abca", "ccc", "bab", ""};
    size_t end = text.size();
    for (const auto& stop : stops)
      if (!stop.empty()) end = std::min(end, text.find(stop));
    StopFilter filter(stops);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(1 + random() % 4, text.size() - at);
      shown += filter.push(text.substr(at, n));
      at += n;
    }
    shown += filter.finish();
    EXPECT_EQ(shown, text.substr(0, end)) << text;
    EXPECT_EQ(filter.stopped(), end < text.size()) << text;
  }
}

}  // namespace
}  // namespace ei
