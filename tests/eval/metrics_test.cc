#include "apps/eval/metrics.h"

#include <gtest/gtest.h>

#include <map>

#include "ei/io/json.h"
#include "tests/support/files.h"

namespace ei::eval {
namespace {

TEST(MetricsTest, QaF1ByHand) {
  EXPECT_EQ(qa_f1("The cat!", "a CAT"), 1);
  EXPECT_DOUBLE_EQ(qa_f1("cat cat dog", "cat dog dog"), 2.0 / 3);  // 2 in common of 3 and 3
  EXPECT_DOUBLE_EQ(qa_f1("in the old theatre", "theatre"), 0.5);   // of 3 words and 1
  EXPECT_EQ(qa_f1("an answer", "other"), 0);
  EXPECT_EQ(qa_f1("", ""), 0);
}

TEST(MetricsTest, RougeByHand) {
  // The longest common subsequence is "cat mat": of 4 different words and of 3.
  EXPECT_NEAR(rouge_l("the cat the on mat", "a cat mat"), 2 * (0.5 * 2 / 3) / (0.5 + 2.0 / 3),
              1e-7);
  // In two sentences the order between them does not count.
  EXPECT_NEAR(rouge_l("b. a", "a. b"), 1, 1e-7);
  EXPECT_NEAR(rouge_l("b a", "a b"), 0.5, 1e-7);
  EXPECT_EQ(rouge_l("", "a"), 0);
}

TEST(MetricsTest, ClassificationByHand) {
  const std::vector<std::string> classes = {"Price", "Price of wine", "City", "Date"};
  EXPECT_EQ(classification("City", "City", classes), 1);
  EXPECT_EQ(classification("City or Date", "City", classes), 0.5);
  EXPECT_EQ(classification("Date", "City", classes), 0);
  EXPECT_EQ(classification("Price of wine", "Price of wine", classes), 1);  // Price is part of it
  EXPECT_EQ(classification("Price of wine", "Price", classes), 0.5);
}

TEST(MetricsTest, NumbersByHand) {
  EXPECT_EQ(count_match("There are 12 of them.", "12"), 1);
  EXPECT_EQ(count_match("3 or 12", "12"), 0.5);
  EXPECT_EQ(count_match("none", "12"), 0);
  EXPECT_EQ(retrieval_match("Paragraph 12", "Paragraph 12"), 1);
  EXPECT_EQ(retrieval_match("112", "Paragraph 12"), 0);
  EXPECT_NE(test::error_of([] { retrieval_match("1", "Section 12"); }).find("Section 12"),
            std::string::npos);
}

TEST(MetricsTest, CodeByHand) {
  EXPECT_EQ(code_similarity("x = 1", "x = 1"), 1);
  EXPECT_EQ(code_similarity("# not this\nx = 1\nnor this", "x = 1"), 1);
  EXPECT_EQ(code_similarity("abcd", "ab"), 0.67);  // 2 * 2 / 6
  EXPECT_EQ(code_similarity("# only", "x"), 0);
}

// What the published scripts say of some hundred small texts (tools/make_metric_cases.py).
TEST(MetricsTest, AreThePublishedOnes) {
  std::map<std::string, int> n;
  for (const Json& c : read_json(EI_SOURCE_DIR "/tests/eval/data/metrics.json")) {
    const std::string metric = c["metric"], answer = c["answer"], truth = c["truth"];
    double got = -1;
    if (metric == "qa_f1_score") got = qa_f1(answer, truth);
    if (metric == "rouge_score") got = rouge_l(answer, truth);
    if (metric == "classification_score") got = classification(answer, truth, c["classes"]);
    if (metric == "count_score") got = count_match(answer, truth);
    if (metric == "retrieval_score") got = retrieval_match(answer, truth);
    if (metric == "code_sim_score") got = code_similarity(answer, truth);
    // Both sides in double, sums in another order.
    EXPECT_NEAR(got, c["score"].get<double>(), 1e-12) << c;
    n[metric] += got > 0;
  }
  EXPECT_EQ(n.size(), 6u);
  for (const auto& [metric, n_scored] : n) EXPECT_GT(n_scored, 8) << metric;
}

}  // namespace
}  // namespace ei::eval
