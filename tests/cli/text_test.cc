// What people read in a terminal: tables, units, progress.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "apps/cli/environment.h"
#include "apps/cli/progress.h"
#include "apps/cli/table.h"
#include "apps/cli/units.h"

namespace ei::cli {
namespace {

TEST(TableTest, ColumnsLineUp) {
  Table table({"", "dense", "entropy"});
  table.add({"answer", "yes", "no"});
  table.add({"größe", "1", "12,345,678"});  // counted in characters, not bytes
  EXPECT_EQ(table.str(),
            "|        | dense |    entropy |\n"
            "|--------|------:|-----------:|\n"
            "| answer |   yes |         no |\n"
            "| größe  |     1 | 12,345,678 |\n");
}

TEST(UnitsTest, AreForPeople) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(-1234567), "-1,234,567");
  EXPECT_EQ(human_bytes(0), "0 bytes");
  EXPECT_EQ(human_bytes(1023), "1023 bytes");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(1024 * 1024 - 1), "1.0 MiB");  // never "1024.0 KiB"
  EXPECT_EQ(human_bytes(int64_t{5} << 40), "5.0 TiB");
  EXPECT_EQ(human_rate(7.25), "7.2");
  EXPECT_EQ(human_rate(1234.4), "1,234");
  EXPECT_EQ(human_ms(12.34), "12.3 ms");
  EXPECT_EQ(human_ms(1250), "1.25 s");
  EXPECT_EQ(human_ms(125000), "2:05 min");
  EXPECT_EQ(clock_time(3723), "1:02:03");
}

TEST(ProgressTest, ShowsSpeedAndTimeLeft) {
  EXPECT_EQ(progress_text("reading", 8000, 32000, 1000, 45, 80),
            "reading  25% [######...................] 8,000/32,000  1,000 tokens/s  0:45 left");
  EXPECT_THAT(progress_text("reading", 0, 32000, 0, 0, 80),
              testing::Not(testing::HasSubstr("left")));
  EXPECT_THAT(progress_text("reading", 5, 5, 10, 0, 80), testing::HasSubstr("100%"));
}

TEST(ProgressTest, NeverWiderThanTheTerminal) {
  for (int width = 0; width < 120; ++width)
    EXPECT_LE(progress_text("reading", 31999, 32000, 123456, 7200, width).size(), size_t(width));
}

TEST(EnvironmentTest, NamesFollowTheFlags) {
  EXPECT_EQ(environment_name("--top-k"), "ENTROPYINFER_TOP_K");
  EXPECT_EQ(environment_name("json"), "ENTROPYINFER_JSON");
}

}  // namespace
}  // namespace ei::cli
