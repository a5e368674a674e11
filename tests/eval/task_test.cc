#include "apps/eval/task.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/eval/words.h"
#include "tests/support/files.h"

namespace ei::eval {
namespace {

double place(const std::string& text, const std::string& part) {
  return double(text.find(part)) / double(text.size());
}

TEST(TaskTest, TheSpecDecides) {
  for (const std::string& task : task_names()) {
    const SampleSpec spec{.task = task, .n_tokens = 3000, .seed = 5};
    const Sample a = make_sample(spec, count_words), b = make_sample(spec, count_words);
    EXPECT_EQ(a.document, b.document);
    EXPECT_EQ(a.question, b.question);
    SampleSpec other = spec;
    other.seed = 6;
    EXPECT_NE(make_sample(other, count_words).document, a.document);
    EXPECT_NE(make_sample(other, count_words).question, a.question);
  }
}

TEST(TaskTest, WhatIsAskedForIsInTheTextOnceAtItsDepth) {
  for (const std::string& task : task_names())
    for (const double depth : {0.0, 0.3, 1.0})
      for (const uint64_t seed : {1, 2, 3}) {
        SCOPED_TRACE(task + " depth " + std::to_string(depth) + " seed " + std::to_string(seed));
        Sample sample = make_sample({.task = task, .n_tokens = 4000, .depth = depth, .seed = seed},
                                    count_words);
        ASSERT_FALSE(sample.expected.empty());
        if (task == "quote") sample.expected = {sample.expected.back()};
        for (const std::string& part : sample.expected) {
          // A variable stands in its own assignment and in the next one's.
          EXPECT_GE(occurrences(sample.document, part), 1u) << part;
          EXPECT_LE(occurrences(sample.document, part), task == "chain" ? 2u : 1u) << part;
          EXPECT_EQ(occurrences(sample.question, part), 0u) << part;
        }
        if (has_depth(task)) {
          EXPECT_NEAR(place(sample.document, sample.expected[0]), depth, 0.03);
        }
        // Each sentence is counted with the blank before it, as one word more.
        const auto n_sentences = std::count(sample.document.begin(), sample.document.end(), '.');
        EXPECT_NEAR(double(count_words(sample.document) + n_sentences), 4000 - 448, 40);
      }
}

TEST(TaskTest, FactsOfATaskAreThere) {
  const auto sample = [](const std::string& task) {
    return make_sample({.task = task, .n_tokens = 4000, .seed = 1}, count_words);
  };
  const std::string fact = "One of the special magic numbers for ";
  EXPECT_EQ(occurrences(sample("single").document, fact), 1u);
  // Eight keys of one value, one of four.
  EXPECT_EQ(occurrences(sample("many-keys").document, fact), 12u);
  for (const char* task : {"many-values", "several-keys", "chain", "quote"})
    EXPECT_EQ(sample(task).document, sample("many-keys").document) << task;
  const Sample values = sample("many-values");
  EXPECT_EQ(values.expected.size(), 4u);
  const std::string question = "What are all the special magic numbers for ";
  const std::string key =
      values.question.substr(question.size(), values.question.find(" mentioned") - question.size());
  EXPECT_EQ(occurrences(values.document, fact + key + " is: "), 4u);
  const Sample chain = sample("chain");
  for (size_t i = 1; i < 3; ++i) {
    const size_t at =
        chain.document.find("VAR " + chain.expected[i] + " = VAR " + chain.expected[i - 1] + ".");
    ASSERT_NE(at, std::string::npos);
    EXPECT_LT(chain.document.find("VAR " + chain.expected[i - 1] + " = "), at);
  }
}

TEST(TaskTest, AQuoteGoesOnWhereItsPassageEnds) {
  const Sample sample = make_sample({.task = "quote", .n_tokens = 2000, .seed = 1}, count_words);
  const std::string ask = "Continue this passage from the text:";
  ASSERT_TRUE(sample.question.starts_with(ask));
  const std::string passage = sample.question.substr(ask.size());
  EXPECT_EQ(occurrences(sample.document, passage), 1u);
  EXPECT_EQ(sample.expected.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(count_words(sample.expected[i]), int64_t(i) + 1);
    EXPECT_EQ(occurrences(sample.document, passage + " " + sample.expected[i]), 1u);
  }
}

TEST(TaskTest, AHaystackFillsTheText) {
  const Sample sample = make_sample({.task = "single",
                                     .n_tokens = 1000,
                                     .seed = 1,
                                     .haystack = "It rained. Did it  rain?\nIt did."},
                                    count_words);
  EXPECT_GT(occurrences(sample.document, "It rained. Did it rain? It did. It rained."), 50u);
  EXPECT_EQ(occurrences(sample.document, sample.expected[0]), 1u);
  EXPECT_NE(test::error_of([] {
              make_sample({.task = "single", .haystack = " \n"}, count_words);
            }).find("no text"),
            std::string::npos);
}

TEST(TaskTest, ScoreIsTheShareThatWasFound) {
  EXPECT_EQ(score({"12", "34"}, "it is 34"), 0.5);
  EXPECT_EQ(score({"12", "34"}, "34, 12"), 1);
  EXPECT_EQ(score({"12"}, ""), 0);
  EXPECT_EQ(score({"Paris", "paris"}, "It is PARIS."), 1);
  EXPECT_EQ(score({"12", "34"}, "it is 34", /*any=*/true), 1);
  EXPECT_EQ(score({"12", "34"}, "it is 5", /*any=*/true), 0);
}

TEST(TaskTest, RefusesWhatCannotBe) {
  EXPECT_NE(test::error_of([] { make_sample({.task = "riddle"}, count_words); }).find("riddle"),
            std::string::npos);
  EXPECT_NE(test::error_of([] {
              make_sample({.task = "single", .n_tokens = 300}, count_words);
            }).find("300"),
            std::string::npos);
}

}  // namespace
}  // namespace ei::eval
