// What people read in a terminal: tables, units, progress.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "apps/cli/environment.h"
#include "apps/cli/limits.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/suggest.h"
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
  EXPECT_EQ(progress_text("reading", 8000, 32000, 1000, 45, 28), "reading  25% 8,000/32,000");
  EXPECT_EQ(progress_text("reading", 8000, 32000, 1000, 45, 15), "reading  25%");
}

TEST(LimitsTest, CountsHaveOneSpelling) {
  EXPECT_EQ(parse_count("0"), 0);
  EXPECT_EQ(parse_count("-3"), -3);
  EXPECT_EQ(parse_count("4k"), 4096);
  EXPECT_EQ(parse_count("32K"), 32768);
  EXPECT_EQ(parse_count("1M"), 1048576);
  for (const char* text :
       {"", "k", "4.5k", "4kk", "4 k", "0x10", "99999999999999999999", "9007199254740993k"})
    EXPECT_EQ(parse_count(text), std::nullopt) << text;
}

TEST(LimitsTest, AreToldInWords) {
  const auto error = [](const CLI::Validator& validator, std::string text) {
    return validator(text);
  };
  EXPECT_EQ(error(count(1), "7"), "");
  EXPECT_EQ(error(count(1, int64_t{1} << 30), "0"), "expected a whole number, 1 or more, found 0");
  EXPECT_EQ(error(count(1, 64), "65"), "expected a whole number from 1 to 64, found 65");
  EXPECT_EQ(error(count(INT64_MIN), "many"), "expected a whole number, found many");
  EXPECT_EQ(error(between(0, 1), "1.5"), "expected a number from 0 to 1, found 1.5");
  EXPECT_EQ(error(between(-1, INT32_MAX), "-2"), "expected a number, -1 or more, found -2");
  EXPECT_NE(error(between(0, 1), "nan"), "");
  std::string length = "8k";
  EXPECT_EQ(count(1)(length), "");
  EXPECT_EQ(length, "8192");
}

TEST(SuggestTest, TheNearestNameIsMeant) {
  const std::vector<std::string> names = {"run", "score", "serve", "--prompt", "--prefill"};
  EXPECT_EQ(nearest("rnu", names), "run");
  EXPECT_EQ(nearest("rum", names), "run");
  EXPECT_EQ(nearest("sreve", names), "serve");
  EXPECT_EQ(nearest("--promt", names), "--prompt");
  EXPECT_EQ(nearest("--perfil", names), "--prefill");
  EXPECT_EQ(nearest("nope", names), "");
  EXPECT_EQ(nearest("--json", names), "");
  EXPECT_EQ(nearest("", names), "");
  EXPECT_EQ(nearest("x", {}), "");
}

TEST(StatsTest, OfACancelledPromptSayWhatWasRead) {
  Generation g;
  g.prompt_tokens = 60000;
  g.read_tokens = 4096;
  EXPECT_THAT(stats_line(g), testing::StartsWith("4,096 of 60,000 prompt tokens read in"));
  EXPECT_THAT(stats_line(g), testing::Not(testing::HasSubstr("dense")));
  g.read_tokens = 60000;
  EXPECT_THAT(stats_line(g), testing::StartsWith("60,000 prompt tokens in"));
}

TEST(EnvironmentTest, NamesFollowTheFlags) {
  EXPECT_EQ(environment_name("--top-k"), "ENTROPYINFER_TOP_K");
  EXPECT_EQ(environment_name("json"), "ENTROPYINFER_JSON");
}

}  // namespace
}  // namespace ei::cli
