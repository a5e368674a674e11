#include "apps/eval/summary.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace ei::eval {
namespace {

using Json = nlohmann::ordered_json;

Result result(const std::string& task, int64_t length, int64_t sample, const std::string& policy,
              double score) {
  return {.task = task,
          .length = length,
          .sample = sample,
          .depth = 0.25,
          .policy = policy,
          .expected = {"</script>"},
          .answer = "\xff",
          .score = score,
          .prompt_tokens = length,
          .density = 0.5,
          .kv_bytes = 100 * (sample + 1),
          .kv_bytes_full = 1000,
          .prefill_ms = 10,
          .token_ms = 2};
}

TEST(IntervalTest, IsWilsons) {
  // Newcombe (1998): 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  const auto of = [](int k, int n) {
    std::vector<double> scores(static_cast<size_t>(n), 0);
    std::fill_n(scores.begin(), k, 1);
    return interval(scores);
  };
  EXPECT_NEAR(of(81, 263).low, 0.2553, 1e-4);
  EXPECT_NEAR(of(81, 263).high, 0.3662, 1e-4);
  EXPECT_NEAR(of(15, 148).low, 0.0624, 1e-4);
  EXPECT_NEAR(of(15, 148).high, 0.1605, 1e-4);
  EXPECT_NEAR(of(0, 20).high, 0.1611, 1e-4);
  EXPECT_EQ(of(0, 20).low, 0);
  EXPECT_NEAR(of(1, 29).high, 0.1718, 1e-4);
  EXPECT_EQ(interval({0.5, 1}).mean, 0.75);
  EXPECT_EQ(interval({}).high, 1);
}

TEST(SummaryTest, GroupsByLengthTaskAndPolicy) {
  const std::vector<Result> results = {
      result("single", 4096, 0, "a", 1), result("single", 4096, 1, "a", 0),
      result("single", 4096, 0, "b", 1), result("chain", 4096, 0, "a", 0.5),
      result("single", 8192, 0, "a", 1)};
  const std::vector<Group> groups = summarize(results);
  std::vector<std::string> got;
  for (const Group& g : groups)
    got.push_back(fmt::format("{} {} {} {} {}", g.length, g.task, g.policy, g.n, g.score.mean));
  EXPECT_EQ(got, (std::vector<std::string>{
                     "4096 single a 2 0.5", "4096 single b 1 1", "4096 chain a 1 0.5",
                     "4096 all a 3 0.5", "4096 all b 1 1", "8192 single a 1 1", "8192 all a 1 1"}));
  EXPECT_EQ(groups[0].kv_bytes, 150);
  EXPECT_EQ(groups[0].density, 0.5);
  const std::string text = table(groups);
  EXPECT_NE(text.find(" 0.50 | 0.09 to 0.91 |"), std::string::npos) << text;
  EXPECT_NE(text.find("15%"), std::string::npos) << text;
}

TEST(SummaryTest, TasksCountTheSameInTheMeanOfAll) {
  std::vector<Result> results = {result("a", 0, 0, "p", 1)};
  for (int i = 0; i < 9; ++i) results.push_back(result("b", 0, i, "p", 0));
  for (Result& r : results) r.prompt_tokens = r.task == "a" ? 1000 : 100;
  const std::vector<Group> groups = summarize(results);
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[2].task, "all");
  EXPECT_EQ(groups[2].n, 10);
  EXPECT_EQ(groups[2].score.mean, 0.5);
  // The variance of half the sum of two means, of 1 and of 9: as of 4 / (1 + 1/9) = 3.6 prompts.
  EXPECT_NEAR(groups[2].score.high, interval(0.5, 3.6).high, 1e-12);
  // Prompts of all lengths are one group; it tells their mean.
  EXPECT_EQ(groups[0].length, 1000);
  EXPECT_EQ(groups[2].length, 190);
}

// Whatever models answer, it stays data.
TEST(SummaryTest, ThePageHoldsItsData) {
  Result odd = result("single", 4096, 0, "</script><b>", 1);
  std::string page = html({{"model", "</script>"}}, {odd});
  const std::string open = "<script id=\"data\" type=\"application/json\">";
  const size_t begin = page.find(open) + open.size();
  const Json data = Json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  EXPECT_EQ(data["about"]["model"], "</script>");
  EXPECT_EQ(data["groups"][0]["policy"], "</script><b>");
  EXPECT_EQ(data["samples"][0]["depth"], 0.25);
  const std::string svg = "http://www.w3.org/2000/svg";  // a name, not an address
  page.replace(page.find(svg), svg.size(), "");
  for (const char* outside : {"http:", "https:", "src=", "@import", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
}

class ResultFileTest : public testing::Test {
 protected:
  test::TempDir dir_;
  std::filesystem::path path_ = dir_ / "answers.jsonl";
  Json about_ = {{"model", "m"}, {"seed", 1}};
};

TEST_F(ResultFileTest, GoesOnAfterAnInterruption) {
  {
    ResultFile file(path_, about_);
    file.add(result("single", 4096, 0, "a", 1));
    file.add(result("single", 4096, 1, "a", 0.5));
  }
  const std::string whole = read_file(path_);
  for (const size_t cut : {size_t{1}, size_t{40}}) {  // in the last line
    test::write_file(path_, std::string_view(whole).substr(0, whole.size() - cut));
    ResultFile file(path_, about_);
    ASSERT_EQ(file.results().size(), 1u);
    EXPECT_TRUE(file.results()[0].is_for("single", 4096, 0, "a"));
    file.add(result("single", 4096, 1, "a", 0.5));
    EXPECT_EQ(read_file(path_), whole);
  }
  EXPECT_EQ(
      table(summarize(ResultFile(path_, about_).results())),
      table(summarize({result("single", 4096, 0, "a", 1), result("single", 4096, 1, "a", 0.5)})));
}

TEST_F(ResultFileTest, RefusesWhatIsNotItsOwn) {
  ResultFile(path_, about_).add(result("single", 4096, 0, "a", 1));
  Json other = about_;
  other["seed"] = 2;
  const std::string differs = test::error_of([&] { ResultFile(path_, other); });
  EXPECT_NE(differs.find("answers.jsonl, line 1: "), std::string::npos) << differs;
  EXPECT_NE(differs.find("seed is 1, expected 2"), std::string::npos) << differs;

  const std::string whole = read_file(path_);
  for (const char* bad : {"{\n", "{\"task\":\"single\"}\n", "[]\n"}) {
    test::write_file(path_, whole + bad + whole);
    const std::string error = test::error_of([&] { ResultFile(path_, about_); });
    EXPECT_NE(error.find("answers.jsonl, line 3: "), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace ei::eval
