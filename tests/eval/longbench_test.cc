#include "apps/eval/longbench.h"

#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace ei::eval {
namespace {

Json line(const std::string& input, const std::string& answer) {
  return {{"input", input},
          {"context", "It {rained}."},
          {"answers", {"no", answer}},
          {"length", 40},
          {"all_classes", nullptr}};
}

class LongBenchTest : public testing::Test {
 protected:
  LongBenchTest() {
    std::filesystem::create_directories(dir_ / "config");
    std::filesystem::create_directories(dir_ / "data");
    settings("dataset2prompt.json",
             {{"qasper", "Read: {context} {{{input}}}"}, {"trec", "{context}\n{input}"}});
    settings("dataset2maxlen.json", {{"qasper", 128}, {"trec", 64}});
  }
  void settings(const std::string& name, const Json& json) {
    test::write_file(dir_ / ("config/" + name), json.dump());
  }
  void data(const std::string& task, const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& one : lines) text += one + "\n";
    test::write_file(dir_ / ("data/" + task + ".jsonl"), text);
  }
  std::string error(const std::vector<std::string>& tasks = {}) {
    return test::error_of([&] { read_longbench(dir_.path(), tasks, 0, false); });
  }
  test::TempDir dir_;
};

TEST_F(LongBenchTest, ReadsItsFilesWithTheirSettings) {
  data("trec", {line("Q1", "Date").dump(), "", line("Q2", "City").dump()});
  data("qasper", {line("Q3", "yes").dump()});
  data("qasper_e", {line("Q4", "yes").dump()});
  data("vcsum", {"not one of the English tasks"});
  const auto lines = read_longbench(dir_.path(), {}, 0, false);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].task, "qasper");
  EXPECT_EQ(lines[0].prompt, "Read: It {rained}. {Q3}");
  EXPECT_EQ(lines[0].max_tokens, 128);
  EXPECT_EQ(lines[0].n_words, 40);
  EXPECT_EQ(lines[0].answers, (std::vector<std::string>{"no", "yes"}));
  EXPECT_EQ(lines[2].task, "trec");
  EXPECT_EQ(lines[2].n_line, 3);
  EXPECT_EQ(lines[2].prompt, "It {rained}.\nQ2");
  EXPECT_EQ(read_longbench(dir_.path(), {}, 1, false).size(), 2u);
  const auto of_e = read_longbench(dir_.path(), {"qasper_e"}, 0, false);
  ASSERT_EQ(of_e.size(), 1u);
  EXPECT_EQ(of_e[0].prompt, "Read: It {rained}. {Q4}");
}

TEST_F(LongBenchTest, BadLinesAreNamedAndLeftOutOnlyIfAsked) {
  const std::string good = line("Q", "Paragraph 3").dump();
  settings("dataset2prompt.json", {{"passage_retrieval_en", "{input}"}});
  settings("dataset2maxlen.json", {{"passage_retrieval_en", 32}});
  Json no_input = line("Q", "x"), odd = line("Q", "3"), none = line("Q", "3"),
       number = line("Q", "3");
  no_input.erase("input");
  odd["answers"] = {"the third"};
  none["answers"] = Json::array();
  number["input"] = 3;
  for (const std::string& bad : {std::string("{"), std::string("[]"), no_input.dump(), odd.dump(),
                                 none.dump(), number.dump()}) {
    Json right = line("Q", "Paragraph 3");
    right["answers"] = {"Paragraph 3"};
    data("passage_retrieval_en", {right.dump(), bad, right.dump()});
    EXPECT_NE(error().find("passage_retrieval_en.jsonl, line 2: "), std::string::npos)
        << bad << ": " << error();
    const auto lines = read_longbench(dir_.path(), {}, 0, true);
    ASSERT_EQ(lines.size(), 2u) << bad;
    EXPECT_EQ(lines[1].n_line, 3) << bad;
  }
}

TEST_F(LongBenchTest, SaysWhatIsMissing) {
  EXPECT_NE(error().find(".jsonl"), std::string::npos);
  data("musique", {line("Q", "x").dump()});
  EXPECT_NE(error().find("dataset2prompt.json: field \"musique\" is missing"), std::string::npos)
      << error();
  EXPECT_NE(error({"lcc"}).find("lcc.jsonl"), std::string::npos) << error({"lcc"});
  std::filesystem::remove(dir_ / "config/dataset2maxlen.json");
  EXPECT_NE(error().find("dataset2maxlen.json; copy it"), std::string::npos) << error();
  std::filesystem::remove(dir_ / "data/musique.jsonl");
  data("vcsum", {"{}"});
  EXPECT_NE(error(), "");
}

TEST(LongBenchPromptTest, FollowsPythonsFormat) {
  const Json fields = {{"a", "x{b}"}, {"b", "y"}, {"n", 3}};
  EXPECT_EQ(fill_prompt("{a} and {b}{{}}", fields), "x{b} and y{}");
  EXPECT_EQ(fill_prompt("", fields), "");
  for (const char* bad : {"{c}", "{n}", "{a", "a}", "{"})
    EXPECT_NE(test::error_of([&] { fill_prompt(bad, fields); }), "") << bad;
}

TEST(LongBenchPromptTest, LongOnesLoseTheirMiddle) {
  const Engine engine(test::kNeedle);
  std::string prompt = "Here it begins.";
  for (int i = 0; i < 200; ++i) prompt += " The " + std::to_string(i) + " of them.";
  prompt += " Here it ends.";
  const auto n = std::ssize(engine.tokenize(prompt));
  EXPECT_EQ(cut_middle(engine, prompt, n), prompt);
  for (const int64_t most : {n - 1, int64_t{101}, int64_t{20}}) {
    const std::string cut = cut_middle(engine, prompt, most);
    EXPECT_TRUE(cut.starts_with("Here it begins.")) << cut;
    EXPECT_TRUE(cut.ends_with("Here it ends.")) << cut;
    // What is cut apart in the middle may make a token or two more when it is read again.
    EXPECT_LE(std::ssize(engine.tokenize(cut)), most + 2);
    EXPECT_GE(std::ssize(engine.tokenize(cut)), most - 4);
  }
}

TEST(LongBenchScoreTest, IsTheBestOfTheRightAnswers) {
  LongBenchLine one{
      .task = "hotpotqa", .prompt = {}, .answers = {"a blue door", "green"}, .classes = {}};
  EXPECT_EQ(longbench_score(one, "Green."), 1);
  EXPECT_EQ(longbench_score(one, "blue door"), 1);
  EXPECT_EQ(longbench_score(one, "red"), 0);
}

TEST(LongBenchScoreTest, OfExamplesOnlyTheFirstLineCounts) {
  LongBenchLine one{.task = "triviaqa", .prompt = {}, .answers = {"green"}, .classes = {}};
  EXPECT_EQ(longbench_score(one, "\n\ngreen\nQuestion: red"), 1);
  EXPECT_EQ(longbench_score(one, "red\ngreen"), 0);
  EXPECT_EQ(longbench_score(one, "\n"), 0);
  one.task = "hotpotqa";
  EXPECT_LT(longbench_score(one, "green\nQuestion: red"), 1);
}

TEST(LongBenchScoreTest, EveryTaskHasItsMetric) {
  EXPECT_EQ(longbench_tasks().size(), 16u);
  const auto score = [](const std::string& task, const std::string& answer,
                        const std::string& truth) {
    return longbench_score(
        {.task = task, .prompt = {}, .answers = {truth}, .classes = {"City", "Date"}}, answer);
  };
  for (const char* task :
       {"narrativeqa", "qasper", "multifieldqa_en", "2wikimqa", "musique", "triviaqa"})
    EXPECT_EQ(score(task, "The b, a!", "a B"), 1) << task;
  for (const char* task : {"gov_report", "qmsum", "multi_news", "samsum"})
    EXPECT_NEAR(score(task, "b a", "a b"), 0.5, 1e-7) << task;
  EXPECT_EQ(score("trec", "City or Date", "City"), 0.5);
  EXPECT_EQ(score("passage_count", "7 or 8", "8"), 0.5);
  EXPECT_EQ(score("passage_retrieval_en", "Paragraph 8", "Paragraph 8"), 1);
  for (const char* task : {"lcc", "repobench-p", "lcc_e"})
    EXPECT_EQ(score(task, "// no\nabcd", "ab"), 0.67) << task;
  // Examples and code are gone on with; the rest are questions to the model.
  for (const std::string& task : longbench_tasks())
    EXPECT_EQ(longbench_in_chat(task), task != "trec" && task != "triviaqa" && task != "samsum" &&
                                           task != "lcc" && task != "repobench-p");
}

}  // namespace
}  // namespace ei::eval
