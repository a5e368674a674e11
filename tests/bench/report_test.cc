#include "apps/bench/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

namespace ei::bench {
namespace {

const Facts kFacts = {{"cpu", "a \"fast\" one, 2 cores"}, {"commit", "abc"}};

std::vector<Row> rows() {
  const Work read = {Work::Kind::kRead, 8192, 0}, write = {Work::Kind::kWrite, 32, 32768};
  const Case dense = {"dense", "", PrefillPolicy::dense(), DecodePolicy::full()};
  const Case entropy = {"entropy", "", PrefillPolicy{}, DecodePolicy::full()};
  const Case latent = {"entropy", "latent", PrefillPolicy{}, DecodePolicy{}};
  return {{.work = read, .how = dense, .tokens_per_s = {90, 110}, .peak_bytes = 1 << 30},
          {.work = read, .how = entropy, .tokens_per_s = {350, 350}, .density = 0.25},
          {.work = write, .how = latent, .tokens_per_s = {1234.5}}};
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) out.push_back(line);
  return out;
}

// In characters: bytes that do not continue one.
int64_t width(const std::string& s) {
  return std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

TEST(BenchReportTest, MarkdownColumnsLineUp) {
  int64_t table_lines = 0;
  std::string header;
  for (const std::string& line : lines(report(kFacts, rows(), Format::kMd))) {
    if (!line.starts_with("|")) continue;
    if (table_lines++ == 0) header = line;
    EXPECT_EQ(width(line), width(header)) << line;
    EXPECT_EQ(std::count(line.begin(), line.end(), '|'), 8) << line;
  }
  EXPECT_EQ(table_lines, 2 + 3);
}

TEST(BenchReportTest, MarkdownSaysMeanDeviationAndRatio) {
  const std::string text = report(kFacts, rows(), Format::kMd);
  EXPECT_NE(text.find("- cpu: a \"fast\" one, 2 cores\n"), std::string::npos);
  EXPECT_NE(text.find("100.0 ± 14.1"), std::string::npos) << text;
  EXPECT_NE(text.find("3.50x"), std::string::npos) << text;
  EXPECT_NE(text.find("0.250"), std::string::npos) << text;
  EXPECT_NE(text.find("tg32 @ d32768"), std::string::npos) << text;
}

TEST(BenchReportTest, RatioIsToTheDenseRowOfTheSameWork) {
  std::vector<Row> all = rows();
  EXPECT_DOUBLE_EQ(ratio_to_dense(all[0], all), 1);
  EXPECT_DOUBLE_EQ(ratio_to_dense(all[1], all), 3.5);
  EXPECT_EQ(ratio_to_dense(all[2], all), 0);  // no row with the full cache
  all[1].work.n = 4096;
  EXPECT_EQ(ratio_to_dense(all[1], all), 0);
}

TEST(BenchReportTest, JsonHoldsFactsAndNumbers) {
  const auto json = nlohmann::json::parse(report(kFacts, rows(), Format::kJson));
  EXPECT_EQ(json["commit"], "abc");
  ASSERT_EQ(json["results"].size(), 3u);
  EXPECT_EQ(json["results"][1]["tokens_per_s"], 350);
  EXPECT_EQ(json["results"][1]["vs_dense"], 3.5);
  EXPECT_TRUE(json["results"][2]["vs_dense"].is_null());
  EXPECT_EQ(json["results"][2]["n_depth"], 32768);
}

TEST(BenchReportTest, CsvQuotesTextAndKeepsColumns) {
  const std::vector<std::string> csv = lines(report(kFacts, rows(), Format::kCsv));
  ASSERT_EQ(csv.size(), 4u);
  EXPECT_TRUE(csv[0].starts_with("cpu,commit,test,n_prompt,"));
  EXPECT_TRUE(csv[1].starts_with("\"a \"\"fast\"\" one, 2 cores\",\"abc\",\"pp8192\",8192,"))
      << csv[1];
}

TEST(BenchReportTest, KernelsAreHeldAgainstTargets) {
  using Limit = KernelResult::Limit;
  KernelReport kernels;
  kernels.ceilings = {.fma_flops = 2e11, .memory_bytes = 4e10, .l2_bytes = 4e11};
  kernels.results = {
      {.kernel = "matmul",
       .size = "a",
       .seconds = 0.01,
       .flops = 1.7e9,
       .share = 0.85,
       .target = 0.8},
      {.kernel = "matvec",
       .size = "b",
       .seconds = 0.01,
       .bytes = 3e8,
       .limit = Limit::kMemory,
       .share = 0.75,
       .target = 0.85},
      {.kernel = "select",
       .size = "c",
       .seconds = 1,
       .limit = Limit::kStep,
       .share = 0.04,
       .target = 0.05},
      {.kernel = "RoPE", .size = "d", .seconds = 1, .bytes = 1e9, .limit = Limit::kMemory}};
  const auto json = nlohmann::json::parse(report(kFacts, kernels, Format::kJson));
  EXPECT_EQ(json["results"][0]["met"], true);
  EXPECT_EQ(json["results"][1]["met"], false);
  EXPECT_EQ(json["results"][2]["met"], true);  // less is better
  EXPECT_TRUE(json["results"][3]["met"].is_null());
  EXPECT_EQ(json["FMA peak"], "200.0 GFLOP/s");

  const std::string md = report(kFacts, kernels, Format::kMd);
  EXPECT_NE(md.find("170.0 GFLOP/s"), std::string::npos) << md;
  EXPECT_NE(md.find("30.0 GB/s"), std::string::npos) << md;
  EXPECT_NE(md.find("<= 5%"), std::string::npos) << md;
}

}  // namespace
}  // namespace ei::bench
